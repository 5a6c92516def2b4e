"""The console: a page for people who operate Headrace, and the stream of live events that feeds it.

``page_files`` serves the page, ``live_poll`` reads the state once for all open consoles, ``live_view`` shapes it into
``live_objects``, and ``live_problems`` says what needs attention.
"""
