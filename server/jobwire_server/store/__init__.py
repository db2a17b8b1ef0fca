"""The store: every fact of the broker in Redis or Valkey, changed by atomic scripts only.

The scripts are in `lua/`, each with the method that runs it in the module of its stage of life;
docs/schema.md lists the keys. A script checks everything before it writes.
It knows values of the domain, and neither transport nor policy: what is decided comes as arguments.
"""
