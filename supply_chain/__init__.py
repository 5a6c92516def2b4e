"""What Headrace is made of besides its own code: exact versions with hashes, licences, bills of materials."""
