"""The contract as generated messages and stubs: `make proto` writes all but this file."""
