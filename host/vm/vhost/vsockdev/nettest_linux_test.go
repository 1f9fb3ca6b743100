package vsockdev

import (
	"net"
	"testing"

	"golang.org/x/net/nettest"
)

// The standard suite, on each end and for both directions of dialing.
func TestConn(t *testing.T) {
	d, path := startDevice(t)
	g := boot(t, path, 0)
	l, err := d.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	port := l.(*Listener).addr.Port
	hostDials := func() (net.Conn, net.Conn, func(), error) {
		host, end, err := connect(d, g)
		return host, end, func() { host.Close(); end.Close() }, err
	}
	guestDials := func() (net.Conn, net.Conn, func(), error) {
		end, err := g.dial(port)
		if err != nil {
			return nil, nil, nil, err
		}
		host, err := l.Accept()
		return host, end, func() { host.Close(); end.Close() }, err
	}
	for name, mp := range map[string]nettest.MakePipe{
		"host dials": hostDials,
		"host dials, guest's end": func() (net.Conn, net.Conn, func(), error) {
			host, end, stop, err := hostDials()
			return end, host, stop, err
		},
		"guest dials": guestDials,
		"two host ends": func() (net.Conn, net.Conn, func(), error) {
			// One path through the guest and back, as in the test with a
			// real guest.
			a, aEnd, err := connect(d, g)
			if err != nil {
				return nil, nil, nil, err
			}
			b, bEnd, stop, err := guestDials()
			if err != nil {
				return nil, nil, nil, err
			}
			g.wg.Add(1)
			go func() {
				defer g.wg.Done()
				splice(aEnd, bEnd)
			}()
			return a, b, func() { a.Close(); stop() }, nil
		},
	} {
		t.Run(name, func(t *testing.T) { nettest.TestConn(t, mp) })
	}
}
