package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"dhow/internal/errdefs"
	"dhow/proto/control"
)

const (
	// helloTimeout bounds the dialing of PortControl and the hello. The agent
	// listens before it dials PortReady, so this is the time of an answer.
	helloTimeout = 30 * time.Second
	// maxStrangers is how many connections to PortReady may be in their
	// preamble at once; more are closed.
	maxStrangers = 16
	// redialPause is how long a refused dial waits for the news that the agent
	// has gone before it is believed that the refusal is final.
	redialPause = time.Second
)

// Config of a Link.
type Config struct {
	Key     []byte // of the boot
	Version string // of dhowd, for messages
	// Dial connects to a vsock port of the guest.
	Dial func(ctx context.Context, port uint32) (net.Conn, error)
	Log  *slog.Logger
	// Now returns the wall clock and a clock that stands still while the host
	// sleeps; nil for the system's.
	Now func() (wall time.Time, awake time.Duration)
}

// Link is the connection to one boot's agent. Its methods are safe for
// concurrent use.
type Link struct {
	config Config

	mu      sync.Mutex
	current *session      // nil: not connected
	changed chan struct{} // closed when current or err changes
	err     error         // why Run has ended
	clock   clock
}

// session is the life of one agent.
type session struct {
	ready   net.Conn
	welcome control.Welcome
	gone    chan struct{} // closed at its end

	mu     sync.Mutex
	client *control.Client // for short calls; nil: to be dialed again
}

// New returns a link that is not connected.
func New(c Config) *Link {
	if c.Now == nil {
		start := time.Now()
		c.Now = func() (time.Time, time.Duration) {
			t := time.Now()
			// Round strips the monotonic reading, so that the wall clock's
			// jumps show.
			return t.Round(0), t.Sub(start)
		}
	}
	return &Link{config: c, changed: make(chan struct{})}
}

// Run takes in agents that dial ready, a listener on PortReady, until ctx ends
// or the listener is closed (nil), the listener fails, or an agent of another
// version comes. It closes ready and every connection it made, and waits for
// its goroutines.
func (l *Link) Run(ctx context.Context, ready net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	stopped := context.AfterFunc(ctx, func() { _ = ready.Close() })
	defer stopped()
	strangers := make(chan struct{}, maxStrangers)
	err := func() error {
		for {
			c, err := ready.Accept()
			if err != nil {
				return err
			}
			select {
			case strangers <- struct{}{}:
			default:
				_ = c.Close()
				continue
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer context.AfterFunc(ctx, func() { _ = c.Close() })()
				defer c.Close()
				err := control.AdmitGuest(c, l.config.Key, control.PortReady)
				<-strangers
				if err == nil {
					err = l.serve(ctx, c)
				}
				if err == nil || ctx.Err() != nil {
					return
				}
				if errors.As(err, new(*VersionError)) {
					cancel(err)
				} else {
					l.config.Log.Warn("the agent's connection ended", "error", err)
				}
			}()
		}
	}()
	_ = ready.Close()
	if cause := context.Cause(ctx); errors.As(cause, new(*VersionError)) {
		err = cause
	} else if ctx.Err() != nil {
		err = nil
	}
	cancel(err)
	wg.Wait()

	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	if err == nil || errors.Is(err, net.ErrClosed) { // the machine closes its listeners
		l.err = errdefs.New(errdefs.Unavailable, "the machine has ended")
	}
	l.change()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// change tells the waiters. l.mu is held.
func (l *Link) change() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// serve is the life of one admitted agent, from its hello to its end.
func (l *Link) serve(ctx context.Context, ready net.Conn) error {
	s := &session{ready: ready, gone: make(chan struct{})}
	defer close(s.gone)
	hctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	client, welcome, err := l.connect(hctx)
	if err != nil {
		return err
	}
	s.client, s.welcome = client, welcome
	defer s.drop()
	l.mu.Lock()
	l.clock = clock{} // a new agent's clock is not known to be right
	l.mu.Unlock()
	if err := l.setClock(hctx, s); err != nil {
		return fmt.Errorf("set the guest's clock: %w", err)
	}

	l.mu.Lock()
	if old := l.current; old != nil {
		_ = old.ready.Close()
	}
	l.current = s
	l.change()
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.current == s {
			l.current = nil
			l.change()
		}
	}()
	l.config.Log.Info("the agent answers", "version", welcome.Version, "kernel", welcome.Kernel, "pid", welcome.AgentPID)
	return l.watch(ctx, s)
}

// watch waits for the end of the ready connection, which is the agent's, and
// looks at the clock meanwhile.
func (l *Link) watch(ctx context.Context, s *session) error {
	var b [1]byte
	for {
		if err := s.ready.SetReadDeadline(time.Now().Add(clockInterval)); err != nil {
			return err
		}
		n, err := s.ready.Read(b[:])
		var timeout net.Error
		switch {
		case n > 0:
			return errors.New("the agent sent data on the ready connection")
		case errors.As(err, &timeout) && timeout.Timeout():
			cctx, cancel := context.WithTimeout(ctx, helloTimeout)
			if err := l.keepClock(cctx, s); err != nil && ctx.Err() == nil {
				l.config.Log.Warn("cannot set the guest's clock", "error", err)
			}
			cancel()
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("the agent has gone: %w", err)
		}
	}
}

// connect makes a control connection: preamble and hello.
func (l *Link) connect(ctx context.Context) (*control.Client, control.Welcome, error) {
	var w control.Welcome
	c, err := l.dial(ctx, control.PortControl)
	if err != nil {
		return nil, w, err
	}
	client := control.NewClient(c)
	err = client.Call(ctx, control.VerbHello, control.Hello{Protocol: control.Protocol, Version: l.config.Version}, &w)
	var remote *control.RemoteError
	switch {
	case errors.As(err, &remote):
		err = errdefs.New(errdefs.Class(remote.Class), "the agent refused dhow %s: %s", l.config.Version, remote.Sentence)
	case err == nil && w.Protocol != control.Protocol:
		err = &VersionError{Host: l.config.Version, Guest: w.Version, HostProtocol: control.Protocol, GuestProtocol: w.Protocol}
	}
	if err != nil {
		_ = client.Close()
		return nil, w, err
	}
	return client, w, nil
}

// dial connects to a port of the guest and proves who dials.
func (l *Link) dial(ctx context.Context, port uint32) (net.Conn, error) {
	c, err := l.config.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	err = control.ProveHost(c, l.config.Key, port)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// Wait returns the agent's welcome, and waits for it while the link is not
// connected. The error is Run's if that has ended, or ctx's.
func (l *Link) Wait(ctx context.Context) (control.Welcome, error) {
	s, err := l.session(ctx)
	if err != nil {
		return control.Welcome{}, err
	}
	return s.welcome, nil
}

func (l *Link) session(ctx context.Context) (*session, error) {
	for {
		l.mu.Lock()
		s, err, changed := l.current, l.err, l.changed
		l.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if s != nil {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Dial opens a connection of its own to the agent, on one of the guest's
// ports, waiting for the agent while it is being restarted.
func (l *Link) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	for {
		s, err := l.session(ctx)
		if err != nil {
			return nil, err
		}
		// The first thing after the host's sleep is often a docker command.
		if err := l.keepClock(ctx, s); err != nil && ctx.Err() == nil {
			l.config.Log.Warn("cannot set the guest's clock", "error", err)
		}
		c, err := l.dial(ctx, port)
		if err == nil {
			return c, nil
		}
		select {
		case <-s.gone: // it went before it could answer: the next one will
		case <-time.After(redialPause):
			return nil, errdefs.Wrap(errdefs.Unavailable, err, "the agent in the machine does not answer")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Call calls a short verb on the kept connection, waiting for the agent while
// it is being restarted. An error that the agent answered is a
// *control.RemoteError.
func (l *Link) Call(ctx context.Context, verb string, req, resp any) error {
	s, err := l.session(ctx)
	if err != nil {
		return err
	}
	return l.call(ctx, s, verb, req, resp)
}

func (l *Link) call(ctx context.Context, s *session, verb string, req, resp any) error {
	s.mu.Lock()
	client := s.client
	if client == nil {
		var err error
		if client, _, err = l.connect(ctx); err != nil {
			s.mu.Unlock()
			return err
		}
		s.client = client
	}
	s.mu.Unlock()
	err := client.Call(ctx, verb, req, resp)
	if err != nil && !errors.As(err, new(*control.RemoteError)) {
		// The connection is closed now; the next call makes another.
		s.mu.Lock()
		if s.client == client {
			s.client = nil
		}
		s.mu.Unlock()
	}
	return err
}

// drop closes the kept connection.
func (s *session) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		_ = s.client.Close()
		s.client = nil
	}
}

// Stats asks for the guest's figures.
func (l *Link) Stats(ctx context.Context) (control.Stats, error) {
	var s control.Stats
	err := l.Call(ctx, control.VerbStats, nil, &s)
	return s, err
}

// Shutdown asks the agent to stop containers, each with grace between SIGTERM
// and SIGKILL, and to power the machine off. It returns when containers have
// stopped and the disk is synced. It uses a connection of its own, as the
// answer takes long, and does not wait for an agent that is not there.
func (l *Link) Shutdown(ctx context.Context, grace time.Duration) error {
	if !l.Connected() {
		return errdefs.New(errdefs.Unavailable, "the agent in the machine is not there")
	}
	client, _, err := l.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.Call(ctx, control.VerbShutdown, control.Shutdown{Grace: grace}, nil)
}

// Connected reports whether an agent is there.
func (l *Link) Connected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current != nil
}

// VersionError says that the agent in the image speaks another version of
// proto/control than dhowd.
type VersionError struct {
	Host, Guest                 string // versions of dhow
	HostProtocol, GuestProtocol int
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("dhowd %s (protocol %d) does not fit the agent %s (protocol %d) in the VM image: install the image that came with dhow, or make it anew with `make vmimage`",
		e.Host, e.HostProtocol, e.Guest, e.GuestProtocol)
}
