package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"dhow/host/splice"
	"dhow/internal/errdefs"
)

// Config of a Server.
type Config struct {
	// Dial returns a connection to the agent's Docker API, booting the machine
	// if need be. It is called once per connection, concurrently. Its context
	// ends with the server.
	Dial func(context.Context) (net.Conn, error)
	// Clients is told the number of connections that have sent something and
	// are still open, whenever it changes; nil for nobody. Calls are in order
	// and must not block.
	Clients func(n int)
	Log     *slog.Logger
}

// Server copies between accepted connections and the agent.
type Server struct {
	config Config
	ctx    context.Context
	cancel context.CancelFunc

	mu        sync.Mutex
	listeners []net.Listener
	conns     map[net.Conn]struct{}
	live      int // connections counted for Clients

	notify sync.Mutex // keeps Clients' calls in order
	wg     sync.WaitGroup
}

// New returns a server; Serve starts it.
func New(c Config) *Server {
	ctx, cancel := context.WithCancel(context.Background())
	return &Server{config: c, ctx: ctx, cancel: cancel, conns: map[net.Conn]struct{}{}}
}

// Serve accepts from l until Close, or until l fails; it returns nil after
// Close. It may run for several listeners at once.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	s.listeners = append(s.listeners, l)
	if s.ctx.Err() != nil { // Close has been through the list already
		_ = l.Close()
	}
	s.mu.Unlock()
	var pause time.Duration
	for {
		c, err := l.Accept()
		if s.ctx.Err() != nil {
			if c != nil {
				_ = c.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Out of file descriptors, most likely: it passes.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.config.Log.Warn("cannot accept a docker connection", "error", err, "again in", pause)
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
				return nil
			}
			continue
		}
		pause = 0
		s.mu.Lock()
		if s.ctx.Err() != nil { // Close has been through the list already
			s.mu.Unlock()
			_ = c.Close()
			return nil
		}
		s.conns[c] = struct{}{}
		s.wg.Add(1)
		s.mu.Unlock()
		go func() {
			defer s.wg.Done()
			s.handle(c)
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		}()
	}
}

// Close closes the listeners and every connection, and waits for the
// connections' goroutines. Serve returns.
func (s *Server) Close() error {
	s.cancel()
	s.mu.Lock()
	for _, l := range s.listeners {
		_ = l.Close()
	}
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

func (s *Server) count(d int) {
	s.notify.Lock()
	defer s.notify.Unlock()
	s.mu.Lock()
	s.live += d
	n := s.live
	s.mu.Unlock()
	if s.config.Clients != nil {
		s.config.Clients(n)
	}
}

// firstRead is how much of a request is taken before the agent is dialed.
const firstRead = 16 << 10

func (s *Server) handle(c net.Conn) {
	defer c.Close()
	first := make([]byte, firstRead)
	n, _ := c.Read(first)
	if n == 0 {
		return // closed before it asked for anything
	}
	s.count(1)
	defer s.count(-1)
	first = first[:n]
	agent, err := s.config.Dial(s.ctx)
	if err != nil {
		// Who failed has logged the whole chain.
		s.config.Log.Warn("a docker client got no answer from the machine", "error", errdefs.Sentence(err))
		refuse(c, first, err)
		return
	}
	defer agent.Close()
	// Close can have come between Dial and here; it closes c only.
	defer context.AfterFunc(s.ctx, func() { _ = agent.Close() })()
	if _, err := agent.Write(first); err != nil {
		s.config.Log.Debug("docker connection ended", "error", err)
		return
	}
	first = nil // free it: connections live long
	user := c
	if u, ok := c.(*net.UnixConn); ok {
		w := &watched{UnixConn: u, gone: func() { _ = agent.Close() }}
		defer w.watch.Wait() // Join has closed the connection
		user = w
	}
	if err := splice.Join(user, agent); err != nil && !errors.Is(err, net.ErrClosed) { // else we closed it
		s.config.Log.Debug("docker connection ended", "error", err)
	}
}

// refuseTime bounds the telling of an error.
const refuseTime = 5 * time.Second

// refuse answers the request that starts with first with the status 503 and the
// error's sentence, as docker's API words errors.
func refuse(c net.Conn, first []byte, err error) {
	body, _ := json.Marshal(map[string]string{"message": errdefs.Sentence(err)}) // never fails
	_ = c.SetDeadline(time.Now().Add(refuseTime))
	head := fmt.Sprintf("HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", len(body))
	if bytes.HasPrefix(first, []byte("HEAD ")) {
		body = nil
	}
	if _, err := c.Write(append([]byte(head), body...)); err != nil {
		return
	}
	// Closing while the client still sends would reset the connection, and with
	// some clients lose the answer.
	if w, ok := c.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, c)
	}
}
