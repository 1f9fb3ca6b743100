package proxy

import (
	"errors"
	"io"
	"net"
	"sync"
)

// watched is a docker client's connection that is watched, once the client's
// input has ended, for the client's going away: a client that has half-closed
// still reads, one that is gone holds an idle attach open in the guest until the
// next output.
type watched struct {
	*net.UnixConn
	gone  func() // called once the client has closed both directions
	start sync.Once
	watch sync.WaitGroup // ends when the connection is closed, at the latest
}

// Read reads the client's input.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.UnixConn.Read(p)
	if errors.Is(err, io.EOF) {
		w.start.Do(func() {
			w.watch.Go(func() {
				if awaitHangup(w.UnixConn) {
					w.gone()
				}
			})
		})
	}
	return n, err
}
