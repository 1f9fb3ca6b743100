package vsockdev

import (
	"io"
	"net"
	"sync"
)

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// splice joins two connections, half-close aware, until both ends are done.
func splice(a, b net.Conn) {
	var wg sync.WaitGroup
	for _, p := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, err := io.Copy(p[0], p[1])
			if err != nil {
				// A direction that failed ends both.
				p[0].Close()
				p[1].Close()
				return
			}
			_ = p[0].(halfCloser).CloseWrite()
		}()
	}
	wg.Wait()
	a.Close()
	b.Close()
}
