"""The Jobwire server: gRPC servicers over a router over a store of atomic scripts."""
