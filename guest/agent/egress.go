//go:build linux

package agent

import (
	"context"
	"fmt"
	"net"
	"time"

	"dhow/internal/errdefs"
	"dhow/internal/vsock"
	proto "dhow/proto/control"
)

// egress dials through the host: its resolver, its proxies, its localhost.
type egress struct{ key []byte }

// dial implements the dialer that the store asks for. The connection carries
// the stream's own bytes, half-close included.
func (e egress) dial(ctx context.Context, network, address string) (_ net.Conn, err error) {
	c, err := vsock.Dial(ctx, proto.PortEgress)
	if err != nil {
		return nil, errdefs.Wrap(errdefs.Unavailable, err, "dial %s: the host cannot be reached", address)
	}
	return ask(ctx, c, e.key, network, address)
}

// ask has the host connect c with address. On an error c is closed.
func ask(ctx context.Context, c net.Conn, key []byte, network, address string) (_ net.Conn, err error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			_ = c.Close()
			if ctx.Err() != nil {
				err = ctx.Err()
			}
		}
	}()
	if err := proto.ProveGuest(c, key, proto.PortEgress); err != nil {
		return nil, err
	}
	if ctx.Err() != nil { // the preamble cleared the deadline that the context's end had set
		return nil, ctx.Err()
	}
	if err := proto.WriteMessage(c, proto.Egress{Network: network, Address: address}); err != nil {
		return nil, err
	}
	var r proto.EgressResult
	if err := proto.ReadMessage(c, &r); err != nil {
		return nil, fmt.Errorf("dial %s by the host: %w", address, err)
	}
	if r.Error != "" {
		return nil, errdefs.New(errdefs.Class(r.Class), "%s", r.Error)
	}
	return c, nil
}
