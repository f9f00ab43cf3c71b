"""What both ends agree on: input contract, tables, coder, packet, bundle, gRPC schema."""
