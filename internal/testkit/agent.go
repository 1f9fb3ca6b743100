package testkit

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"dhow/proto/control"
)

// Agent is the guest's side of proto/control for tests of the host: it
// listens, dials PortReady, and answers the verbs. Fill it in and call Run; one
// Agent is one life of an agent.
type Agent struct {
	Vsock interface {
		Dial(ctx context.Context, port uint32) (net.Conn, error)
		Listen(port uint32) (net.Listener, error)
	}
	Key      []byte
	Protocol int // 0: control.Protocol
	Version  string
	// Docker serves a connection to PortDocker, preamble done, and closes it;
	// nil closes it at once.
	Docker func(net.Conn)
	// Shutdown is called for VerbShutdown; nil answers at once.
	Shutdown func(context.Context, control.Shutdown) error
	Stats    func() control.Stats // nil: zeros

	mu     sync.Mutex
	clocks []time.Time
	hellos int
}

// Clocks returns what the clock was set to, in order.
func (a *Agent) Clocks() []time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]time.Time(nil), a.clocks...)
}

// Hellos returns how many control connections said hello.
func (a *Agent) Hellos() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.hellos
}

// Run lives until ctx ends, and closes all its connections then.
func (a *Agent) Run(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for port, serve := range map[uint32]func(context.Context, net.Conn){control.PortControl: a.control, control.PortDocker: a.docker} {
		l, err := a.Vsock.Listen(port)
		if err != nil {
			return err
		}
		defer l.Close()
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer context.AfterFunc(ctx, func() { _ = l.Close() })()
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				wg.Add(1)
				go func() {
					defer wg.Done()
					defer c.Close()
					defer context.AfterFunc(ctx, func() { _ = c.Close() })()
					if control.AdmitHost(c, a.Key, port) == nil {
						serve(ctx, c)
					}
				}()
			}
		}()
	}
	ready, err := a.Vsock.Dial(ctx, control.PortReady)
	if err != nil {
		return err
	}
	defer ready.Close()
	if err := control.ProveGuest(ready, a.Key, control.PortReady); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = ready.Close() })()
	if _, err := ready.Read(make([]byte, 1)); ctx.Err() == nil {
		return errors.Join(errors.New("the host closed the ready connection"), err)
	}
	return nil
}

func (a *Agent) docker(_ context.Context, c net.Conn) {
	if a.Docker != nil {
		a.Docker(c)
	}
}

func (a *Agent) control(ctx context.Context, c net.Conn) {
	type none = struct{}
	_ = control.Serve(ctx, c, map[string]control.Handler{
		control.VerbHello: control.Handle(func(_ context.Context, h control.Hello) (control.Welcome, error) {
			a.mu.Lock()
			a.hellos++
			a.mu.Unlock()
			p := a.Protocol
			if p == 0 {
				p = control.Protocol
			}
			return control.Welcome{Protocol: p, Version: a.Version, Kernel: "6.1.0-test", BootID: "b", AgentPID: 100,
				Steps: []control.Step{{Name: "agent", At: time.Second}}}, nil
		}),
		control.VerbSetClock: control.Handle(func(_ context.Context, s control.SetClock) (none, error) {
			a.mu.Lock()
			a.clocks = append(a.clocks, s.Time)
			a.mu.Unlock()
			return none{}, nil
		}),
		control.VerbStats: control.Handle(func(context.Context, none) (control.Stats, error) {
			if a.Stats == nil {
				return control.Stats{}, nil
			}
			return a.Stats(), nil
		}),
		control.VerbShutdown: control.Handle(func(ctx context.Context, s control.Shutdown) (none, error) {
			if a.Shutdown == nil {
				return none{}, nil
			}
			return none{}, a.Shutdown(ctx, s)
		}),
	}, func(err error) (string, string) { return "internal", err.Error() })
}
