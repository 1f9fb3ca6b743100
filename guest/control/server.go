//go:build linux

package control

import (
	"context"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dhow/internal/errdefs"
	proto "dhow/proto/control"
)

// Server answers the host's verbs. Its fields are set before the first Serve.
type Server struct {
	Version string
	// Steps returns the named points of the boot so far.
	Steps func() []proto.Step
	// Stats returns the guest's figures.
	Stats func(ctx context.Context) (proto.Stats, error)
	// Stop stops what runs and makes its data durable.
	Stop func(ctx context.Context, grace time.Duration) error
	// PowerOff is called once the host has the answer to its shutdown.
	PowerOff func()
	// SetClock sets the wall clock; nil means the system's.
	SetClock func(time.Time) error
}

type none = struct{}

// Serve answers the calls of one connection until it ends; it closes c.
func (s *Server) Serve(ctx context.Context, c net.Conn) error {
	a := &answered{Conn: c}
	return proto.Serve(ctx, a, map[string]proto.Handler{
		proto.VerbHello:    proto.Handle(s.hello),
		proto.VerbStats:    proto.Handle(func(ctx context.Context, _ none) (proto.Stats, error) { return s.Stats(ctx) }),
		proto.VerbSetClock: proto.Handle(s.setClock),
		proto.VerbShutdown: proto.Handle(func(ctx context.Context, q proto.Shutdown) (none, error) {
			// What was begun is finished even if the host's connection breaks.
			if err := s.Stop(context.WithoutCancel(ctx), q.Grace); err != nil {
				return none{}, err
			}
			a.then = s.PowerOff
			return none{}, nil
		}),
	}, describe)
}

// answered calls then after the next write, which is the answer: one message
// is one Write.
type answered struct {
	net.Conn
	then func()
}

func (a *answered) Write(b []byte) (int, error) {
	n, err := a.Conn.Write(b)
	if then := a.then; then != nil {
		a.then = nil
		then() // also when the host is gone: it asked for it
	}
	return n, err
}

func describe(err error) (class, sentence string) {
	return string(errdefs.ClassOf(err)), errdefs.Sentence(err)
}

func (s *Server) hello(context.Context, proto.Hello) (proto.Welcome, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return proto.Welcome{}, err
	}
	release, _, _ := strings.Cut(string(u.Release[:]), "\x00")
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return proto.Welcome{}, err
	}
	return proto.Welcome{
		Protocol: proto.Protocol, Version: s.Version, Kernel: release, BootID: strings.TrimSpace(string(id)),
		AgentPID: os.Getpid(), Steps: s.Steps(),
	}, nil
}

func (s *Server) setClock(_ context.Context, q proto.SetClock) (none, error) {
	if q.Time.IsZero() {
		return none{}, errdefs.New(errdefs.Invalid, "no time was given to set the clock to")
	}
	if s.SetClock != nil {
		return none{}, s.SetClock(q.Time)
	}
	tv := unix.NsecToTimeval(q.Time.UnixNano())
	return none{}, unix.Settimeofday(&tv)
}
