package vz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"
	"sync"
	"syscall"
	"unsafe"

	"github.com/Code-Hex/vz/v3"

	"dhow/host/vm"
)

// sockets are the machine's vsock ports on the host's side. The framework's
// listener of a port is made once and stays for the machine's life: removing
// one while a connection comes in makes vz v3.7.1 panic.
type sockets struct {
	mu        sync.Mutex
	closed    bool
	device    *vz.VirtioSocketDevice // nil before the start
	listeners map[uint32]*listener   // of callers
	taps      map[uint32]*vz.VirtioSocketListener
	accepting sync.WaitGroup
}

func newSockets() *sockets {
	return &sockets{listeners: map[uint32]*listener{}, taps: map[uint32]*vz.VirtioSocketListener{}}
}

// attach begins to serve the ports that have listeners.
func (s *sockets) attach(d *vz.VirtioSocketDevice) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.device = d
	for port := range s.listeners {
		if err := s.tap(port); err != nil {
			return err
		}
	}
	return nil
}

// tap accepts the framework's connections to port. s.mu is held.
func (s *sockets) tap(port uint32) error {
	if s.device == nil || s.taps[port] != nil {
		return nil
	}
	t, err := s.device.Listen(port)
	if err != nil {
		return err
	}
	s.taps[port] = t
	s.accepting.Go(func() {
		for {
			c, err := t.AcceptVirtioSocketConnection()
			if c == nil && err == nil {
				return // see wake
			}
			if err != nil {
				continue // of one connection
			}
			raw, err := rawConn(c)
			if err != nil {
				_ = c.Close()
				continue
			}
			s.deliver(port, raw)
		}
	})
	return nil
}

func (s *sockets) deliver(port uint32, c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.listeners[port]; l != nil {
		select {
		case l.queue <- c:
			return
		default:
		}
	}
	_ = c.Close()
}

func (s *sockets) listen(port uint32) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := &vz.VirtioSocketListenerAddr{CID: 2, Port: port}
	switch {
	case s.closed:
		return nil, vm.ErrNotRunning
	case s.listeners[port] != nil:
		return nil, &net.OpError{Op: "listen", Net: "vsock", Addr: at, Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	}
	l := &listener{s: s, at: at, queue: make(chan net.Conn, 128), done: make(chan struct{})}
	s.listeners[port] = l
	if err := s.tap(port); err != nil {
		delete(s.listeners, port)
		return nil, err
	}
	return l, nil
}

// close ends all listeners. The machine has stopped: nothing comes in.
func (s *sockets) close() error {
	s.mu.Lock()
	s.closed = true
	for port, l := range s.listeners {
		delete(s.listeners, port)
		l.end()
	}
	var errs []error
	for _, t := range s.taps {
		errs = append(errs, wake(t), t.Close())
	}
	s.mu.Unlock()
	if err := errors.Join(errs...); err != nil {
		return err // and the goroutines of accepting stay: nobody can end them
	}
	s.accepting.Wait()
	return nil
}

// dial connects to a port of the guest. The framework cannot be interrupted:
// a connection that comes too late is closed.
func (s *sockets) dial(ctx context.Context, port uint32) (net.Conn, error) {
	s.mu.Lock()
	d, closed := s.device, s.closed
	s.mu.Unlock()
	if d == nil || closed {
		return nil, vm.ErrNotRunning
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	type result struct {
		c   *vz.VirtioSocketConnection
		err error
	}
	got := make(chan result, 1)
	go func() { // ends with the framework's answer, at the latest at the machine's end
		c, err := d.Connect(port)
		got <- result{c, err}
	}()
	select {
	case r := <-got:
		if r.err != nil {
			return nil, dialError(port, r.err)
		}
		return rawConn(r.c)
	case <-ctx.Done():
		go func() {
			if r := <-got; r.c != nil {
				_ = r.c.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// dialError makes the refusal that others make of the framework's: it says
// ECONNRESET where nobody listens.
func dialError(port uint32, err error) error {
	var ns *vz.NSError
	if errors.As(err, &ns) && ns.Domain == "NSPOSIXErrorDomain" {
		errno := syscall.Errno(ns.Code)
		if errno == syscall.ECONNRESET {
			errno = syscall.ECONNREFUSED
		}
		err = errno
	}
	return &net.OpError{Op: "dial", Net: "vsock", Addr: &vz.VirtioSocketListenerAddr{CID: 3, Port: port}, Err: err}
}

// listener is what Listen gives.
type listener struct {
	s     *sockets
	at    net.Addr
	queue chan net.Conn // filled under s.mu
	once  sync.Once
	done  chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
	default:
		select {
		case c := <-l.queue:
			return c, nil
		case <-l.done:
		}
	}
	return nil, &net.OpError{Op: "accept", Net: "vsock", Addr: l.at, Err: net.ErrClosed}
}

func (l *listener) Addr() net.Addr { return l.at }

func (l *listener) Close() error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for port, other := range l.s.listeners {
		if other == l {
			delete(l.s.listeners, port)
		}
	}
	l.end()
	return nil
}

// end is called with s.mu held.
func (l *listener) end() {
	l.once.Do(func() {
		close(l.done)
		for {
			select {
			case c := <-l.queue:
				_ = c.Close()
			default:
				return
			}
		}
	})
}

// rawConn takes the unix socket out of vz's connection, which hides half-close
// (vz v3.7.1, socket.go: field rawConn).
func rawConn(c *vz.VirtioSocketConnection) (net.Conn, error) {
	v, err := field(c, "rawConn")
	if err != nil {
		return nil, err
	}
	raw, ok := v.Interface().(vm.Conn)
	if !ok {
		return nil, fmt.Errorf("vz: a connection of type %s cannot half-close", v.Elem().Type())
	}
	return raw, nil
}

// wake lets the Accept of a listener whose machine has stopped return nothing,
// since its Close does not (vz v3.7.1, socket.go: field acceptch).
func wake(l *vz.VirtioSocketListener) error {
	v, err := field(l, "acceptch")
	if err != nil {
		return err
	}
	if v.Kind() != reflect.Chan {
		return fmt.Errorf("vz: acceptch is a %s", v.Kind())
	}
	v.Send(reflect.Zero(v.Type().Elem()))
	return nil
}

// field returns an unexported field of what p points to.
func field(p any, name string) (reflect.Value, error) {
	v := reflect.ValueOf(p).Elem().FieldByName(name)
	if !v.IsValid() {
		return v, fmt.Errorf("vz: %T has no field %s: this driver knows v3.7.1", p, name)
	}
	return reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem(), nil
}
