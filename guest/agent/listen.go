//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"dhow/internal/vsock"
	proto "dhow/proto/control"
)

// transport connects the machine with its host. testkit.Side is one, too.
type transport interface {
	Listen(port uint32) (net.Listener, error)
	Dial(ctx context.Context, port uint32) (net.Conn, error)
}

type kernelVsock struct{}

func (kernelVsock) Listen(port uint32) (net.Listener, error) { return vsock.Listen(port) }

func (kernelVsock) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	c, err := vsock.Dial(ctx, port)
	if err != nil {
		return nil, err // not a nil Conn in an interface
	}
	return c, nil
}

// listen opens the agent's sockets before anything slow is done.
func (a *agent) listen() (err error) {
	if a.Boot == nil {
		a.docker, err = listenUnix(a.Socket)
		if err == nil {
			a.onClose(func() error { return ignoreClosed(a.docker.Close()) })
		}
		return err
	}
	if a.vsock == nil {
		a.vsock = kernelVsock{}
	}
	ctl, err := a.vsock.Listen(proto.PortControl)
	if err != nil {
		return fmt.Errorf("listen for the host: %w", err)
	}
	a.ctl = admit(ctl, a.Boot.Key, proto.PortControl)
	a.onClose(func() error { return ignoreClosed(a.ctl.Close()) })
	docker, err := a.vsock.Listen(proto.PortDocker)
	if err != nil {
		return fmt.Errorf("listen for docker clients: %w", err)
	}
	a.docker = admit(docker, a.Boot.Key, proto.PortDocker)
	a.onClose(func() error { return ignoreClosed(a.docker.Close()) })
	return nil
}

// listenUnix makes a socket that only its owner can use; one that a former
// life left is replaced.
func listenUnix(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("another process serves %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// admitted is a listener whose connections have proved that they hold the
// boot's key. A peer that says nothing holds up nobody: each preamble has its
// own goroutine, and there are at most maxPreambles of them.
type admitted struct {
	net.Listener
	key  []byte
	port uint32

	start sync.Once
	conns chan net.Conn
	slots chan struct{}
	err   error
	done  chan struct{} // closed when the listener has failed or was closed
	wg    sync.WaitGroup
}

const maxPreambles = 64

func admit(l net.Listener, key []byte, port uint32) *admitted {
	return &admitted{Listener: l, key: key, port: port, conns: make(chan net.Conn), slots: make(chan struct{}, maxPreambles), done: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *admitted) Accept() (net.Conn, error) {
	l.start.Do(func() { l.wg.Go(l.run) })
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, l.err
	}
}

// Close implements net.Listener; it waits for the preambles in flight.
func (l *admitted) Close() error {
	err := l.Listener.Close()
	l.wg.Wait()
	return err
}

func (l *admitted) run() {
	defer close(l.done)
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			l.err = err
			return
		}
		select {
		case l.slots <- struct{}{}:
		default:
			_ = c.Close()
			continue
		}
		l.wg.Go(func() {
			defer func() { <-l.slots }()
			if proto.AdmitHost(c, l.key, l.port) != nil {
				_ = c.Close()
				return
			}
			select {
			case l.conns <- c:
			case <-l.done:
				_ = c.Close()
			}
		})
	}
}

// serveControl serves the host's control connections until the listener is
// closed.
func (a *agent) serveControl(ctx context.Context) error {
	s := a.controlServer()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := a.ctl.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("serve the host: %w", err)
		}
		wg.Go(func() {
			if err := s.Serve(ctx, c); err != nil && ctx.Err() == nil {
				a.Log.Debug("control connection", "err", err)
			}
		})
	}
}

// ready tells the host that the agent listens, and keeps the connection: its
// end is the agent's end. A host that goes away is dialed again.
func (a *agent) ready(ctx context.Context) error {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		begun := time.Now()
		err := a.stayReady(ctx)
		if ctx.Err() != nil {
			return nil
		}
		a.Log.Warn("the connection that tells the host of the agent ended", "err", err)
		if time.Since(begun) > 5*time.Second {
			wait = 50 * time.Millisecond
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

func (a *agent) stayReady(ctx context.Context) error {
	c, err := a.vsock.Dial(ctx, proto.PortReady)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := proto.ProveGuest(c, a.Boot.Key, proto.PortReady); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return err
}
