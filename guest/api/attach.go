//go:build linux

package api

import (
	"io"
	"sync"

	"dhow/guest/engine"
	"dhow/internal/errdefs"

	"golang.org/x/net/websocket"
)

func (c *call) attachOptions() engine.AttachOptions {
	return engine.AttachOptions{
		Logs:       c.flag("logs"),
		Stream:     c.flag("stream"),
		Stdin:      c.flag("stdin"),
		Stdout:     c.flag("stdout"),
		Stderr:     c.flag("stderr"),
		DetachKeys: c.query.Get("detachKeys"),
	}
}

func (s *server) containerAttach(c *call) error {
	var h *hijacked
	o := c.attachOptions()
	o.Streams = func(terminal bool) (st engine.AttachStreams, err error) {
		h, st, err = c.streams(terminal, o.Stdin)
		return st, err
	}
	defer func() { // also of a panic
		if h != nil {
			h.close()
		}
	}()
	err := s.Containers.ContainerAttach(c.ctx(), c.name, o)
	if h != nil {
		err = inBand(err)
	}
	return err
}

// containerAttachWebSocket attaches by a websocket, for browsers: one socket
// for all streams, not multiplexed.
func (s *server) containerAttachWebSocket(c *call) error {
	o := c.attachOptions()
	if c.version < v1(42) {
		o.Stdin, o.Stdout, o.Stderr = true, true, true
	}
	var served chan struct{}        // closed when the websocket's server is done
	finished := make(chan struct{}) // closed when the attach is
	o.Streams = func(bool) (engine.AttachStreams, error) {
		served = make(chan struct{})
		open := make(chan *socket, 1)
		c.started = true
		go func() {
			defer close(served)
			websocket.Server{Handler: func(ws *websocket.Conn) {
				if c.version >= v1(28) {
					ws.PayloadType = websocket.BinaryFrame
				}
				open <- &socket{ws: ws, gone: make(chan struct{})}
				<-finished
			}}.ServeHTTP(c.w, c.r)
		}()
		select {
		case ws := <-open:
			return engine.AttachStreams{Stdin: ws, Stdout: ws, Stderr: ws, Closed: ws.gone}, nil
		case <-served: // the handshake failed, and was answered
			return engine.AttachStreams{}, errdefs.New(errdefs.Invalid, "the request is not a websocket's handshake")
		}
	}
	defer func() {
		close(finished)
		if served != nil {
			<-served
		}
	}()
	err := s.Containers.ContainerAttach(c.ctx(), c.name, o)
	if served != nil {
		err = inBand(err)
	}
	return err
}

// socket is a websocket as an attach's streams. A websocket has no half-close:
// the end of its input is the end of the client.
type socket struct {
	ws   *websocket.Conn
	gone chan struct{}
	once sync.Once // closes gone
}

func (s *socket) Read(p []byte) (int, error) {
	n, err := s.ws.Read(p)
	if err != nil {
		s.leave()
		err = io.EOF
	}
	return n, err
}

func (s *socket) Write(p []byte) (int, error) {
	n, err := s.ws.Write(p)
	if err != nil {
		s.leave()
	}
	return n, err
}

func (s *socket) leave() { s.once.Do(func() { close(s.gone) }) }
