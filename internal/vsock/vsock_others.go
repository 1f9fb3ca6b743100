//go:build !linux

package vsock

import (
	"context"
	"net"
)

func listen(uint32) (net.Listener, error)        { return nil, ErrUnsupported }
func dial(context.Context, uint32) (Conn, error) { return nil, ErrUnsupported }
