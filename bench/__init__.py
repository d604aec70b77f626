"""What Spanledger costs, measured: each figure beside the floor it must keep and the aim it is built towards."""
