"""gRPC in and out: between Envoy's messages and the service's plain values."""
