package qemu

import (
	"net"
	"os"

	"dhow/internal/errdefs"
)

func socketPair() (net.Conn, *os.File, error) {
	return nil, nil, errdefs.New(errdefs.Unimplemented, "dhow does not run machines with QEMU on Windows")
}
