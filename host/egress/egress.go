package egress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"dhow/host/splice"
	"dhow/internal/errdefs"
	"dhow/proto/control"
)

// Bounds.
const (
	// MaxStreams is how many streams may be open at once; more are refused.
	MaxStreams = 512
	// maxStrangers is how many connections may be in their preamble at once;
	// more are closed, so that a container that opens vsock sockets cannot hold
	// the host's memory.
	maxStrangers = 64
	// requestTimeout bounds the reading of the request.
	requestTimeout = 10 * time.Second
	// DialTimeout bounds a connection's making, name look-up and proxy included.
	DialTimeout = 30 * time.Second
)

// Dialer makes connections for the guest.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Config of a Server.
type Config struct {
	Key    []byte // of the boot
	Dialer Dialer // nil: NewDialer's, with the process's environment
	Log    *slog.Logger
}

// Server serves one boot's streams.
type Server struct {
	config    Config
	strangers chan struct{}
	streams   chan struct{}
}

// New returns a server; Serve starts it.
func New(c Config) *Server {
	if c.Dialer == nil {
		c.Dialer = NewDialer()
	}
	return &Server{config: c, strangers: make(chan struct{}, maxStrangers), streams: make(chan struct{}, MaxStreams)}
}

// Serve serves connections from l until ctx ends or l is closed (nil), or l
// fails, then ends every stream and waits for them. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			_ = l.Close()
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) { // a machine that ends closes its listeners
				return nil
			}
			return err
		}
		select {
		case s.strangers <- struct{}{}:
		default:
			_ = c.Close()
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer context.AfterFunc(ctx, func() { _ = c.Close() })()
			if err := s.handle(ctx, c); err != nil && ctx.Err() == nil {
				s.config.Log.Debug("egress stream ended", "error", err)
			}
		}()
	}
}

// handle serves one connection and closes it.
func (s *Server) handle(ctx context.Context, c net.Conn) error {
	defer c.Close()
	var request control.Egress
	err := s.admit(c, &request)
	<-s.strangers
	if err != nil {
		return err
	}
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		return answer(c, errdefs.New(errdefs.Unavailable, "the host serves %d outbound connections at once and all are in use", MaxStreams))
	}
	out, err := s.dial(ctx, request)
	if aerr := answer(c, err); err != nil || aerr != nil {
		if out != nil {
			_ = out.Close()
		}
		return errors.Join(err, aerr)
	}
	defer context.AfterFunc(ctx, func() { _ = out.Close() })()
	return splice.Join(c, out)
}

func (s *Server) admit(c net.Conn, request *control.Egress) error {
	if err := control.AdmitGuest(c, s.config.Key, control.PortEgress); err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	if err := control.ReadMessage(c, request); err != nil {
		return err
	}
	return c.SetDeadline(time.Time{})
}

func (s *Server) dial(ctx context.Context, r control.Egress) (net.Conn, error) {
	if r.Network != "tcp" {
		return nil, errdefs.New(errdefs.Invalid, "the host does not dial networks of the kind %q", r.Network)
	}
	host, port, err := net.SplitHostPort(r.Address)
	if err == nil {
		if n, perr := strconv.ParseUint(port, 10, 16); perr != nil || n == 0 || host == "" || strings.ContainsAny(host, "\r\n /\x00") {
			err = errors.New("want host:port")
		}
	}
	if err != nil {
		return nil, errdefs.Wrap(errdefs.Invalid, err, "invalid address %q", r.Address)
	}
	ctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	c, err := s.config.Dialer.DialContext(ctx, r.Network, r.Address)
	if err == nil {
		return c, nil
	}
	var classed *errdefs.Error
	if errors.As(err, &classed) {
		return nil, err
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) && errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("dial tcp %s: i/o timeout", r.Address)
	}
	// The sentence is the system's own ("dial tcp 127.0.0.1:5000: connect:
	// connection refused"): docker's messages are made of it.
	return nil, errdefs.Wrap(errdefs.Unavailable, err, "%v", err)
}

// answer tells the guest how its request went.
func answer(c net.Conn, err error) error {
	var r control.EgressResult
	if err != nil {
		r = control.EgressResult{Error: errdefs.Sentence(err), Class: string(errdefs.ClassOf(err))}
	}
	return control.WriteMessage(c, r)
}
