"""The gRPC schema, its generated code (``make proto``), and the little around it."""
