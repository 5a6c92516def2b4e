"""The dependencies of Headrace: exact versions with hashes, licences, bills of materials."""
