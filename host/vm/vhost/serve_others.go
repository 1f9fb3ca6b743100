//go:build !linux

package vhost

import (
	"log/slog"
	"net"
)

// Serve returns ErrUnsupported: QEMU's vhost-user needs Linux.
func Serve(conn *net.UnixConn, dev Device, log *slog.Logger) error {
	conn.Close()
	return ErrUnsupported
}
