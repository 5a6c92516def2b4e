"""Work that a tenant's input causes, in processes that are bounded: in number by turns of tenants (``turns``), each in
memory, time, files and environment (``process``, ``confined``)."""
