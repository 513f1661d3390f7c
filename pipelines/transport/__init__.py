"""How bytes come and go: addresses, local files, HTTP and object stores, what goes wrong there and what is tried again."""
