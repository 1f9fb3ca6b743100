package control_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"dhow/proto/control"
)

func key(b byte) []byte {
	k := make([]byte, control.KeySize)
	k[0] = b
	return k
}

func TestPreambleAdmitsOnlyTheSameKeyPortAndDirection(t *testing.T) {
	for _, c := range []struct {
		name   string
		prove  func(net.Conn) error
		admit  func(net.Conn) error
		passes bool
	}{
		{"same", func(c net.Conn) error { return control.ProveHost(c, key(1), 7) }, func(c net.Conn) error { return control.AdmitHost(c, key(1), 7) }, true},
		{"other key", func(c net.Conn) error { return control.ProveHost(c, key(1), 7) }, func(c net.Conn) error { return control.AdmitHost(c, key(2), 7) }, false},
		{"other port", func(c net.Conn) error { return control.ProveHost(c, key(1), 7) }, func(c net.Conn) error { return control.AdmitHost(c, key(1), 8) }, false},
		{"other direction", func(c net.Conn) error { return control.ProveHost(c, key(1), 7) }, func(c net.Conn) error { return control.AdmitGuest(c, key(1), 7) }, false},
		{"no key", func(c net.Conn) error { return control.ProveGuest(c, nil, 7) }, func(c net.Conn) error { return control.AdmitGuest(c, key(1), 7) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := net.Pipe()
			admitted := make(chan error, 1)
			go func() {
				err := c.admit(b)
				if err != nil {
					b.Close()
				}
				admitted <- err
			}()
			perr := c.prove(a)
			if perr != nil {
				a.Close()
			}
			aerr := <-admitted
			a.Close()
			if c.passes != (perr == nil) || c.passes != (aerr == nil) {
				t.Errorf("prove: %v, admit: %v, want pass = %v", perr, aerr, c.passes)
			}
			if perr != nil && !errors.Is(perr, control.ErrPreamble) {
				t.Errorf("prove: %v is not ErrPreamble", perr)
			}
		})
	}
}

func TestDialerDetectsAnImpostor(t *testing.T) {
	a, b := net.Pipe()
	go func() { // echoes what it is sent, as one without the key might
		buf := make([]byte, 48)
		_, _ = io.ReadFull(b, buf)
		_, _ = b.Write(buf[16:])
		b.Close()
	}()
	if err := control.ProveHost(a, key(1), control.PortDocker); !errors.Is(err, control.ErrPreamble) {
		t.Errorf("err = %v", err)
	}
}

func TestCallAnswersErrorsAndUnknownVerbs(t *testing.T) {
	a, b := net.Pipe()
	served := make(chan error, 1)
	go func() {
		served <- control.Serve(t.Context(), b, map[string]control.Handler{
			control.VerbHello: control.Handle(func(_ context.Context, h control.Hello) (control.Welcome, error) {
				return control.Welcome{Version: h.Version + "!"}, nil
			}),
			control.VerbStats: control.Handle(func(context.Context, struct{}) (control.Stats, error) {
				return control.Stats{}, errors.New("no disk")
			}),
		}, func(err error) (string, string) { return "internal", err.Error() })
	}()
	c := control.NewClient(a)
	var w control.Welcome
	if err := c.Call(t.Context(), control.VerbHello, control.Hello{Version: "1"}, &w); err != nil || w.Version != "1!" {
		t.Errorf("hello: %v %+v", err, w)
	}
	var re *control.RemoteError
	if err := c.Call(t.Context(), control.VerbStats, nil, nil); !errors.As(err, &re) || re.Sentence != "no disk" {
		t.Errorf("stats: %v", err)
	}
	if err := c.Call(t.Context(), "no.verb", nil, nil); !errors.As(err, &re) || re.Class != "unimplemented" {
		t.Errorf("unknown verb: %v", err)
	}
	c.Close()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	go func() { _, _ = io.Copy(io.Discard, b) }() // reads, never answers
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := control.NewClient(a).Call(ctx, control.VerbStats, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
}

func TestTheConnectionsEndCancelsTheCallInFlight(t *testing.T) {
	a, b := net.Pipe()
	started, ended := make(chan struct{}), make(chan error, 1)
	served := make(chan error, 1)
	go func() {
		served <- control.Serve(t.Context(), b, map[string]control.Handler{
			control.VerbShutdown: control.Handle(func(ctx context.Context, _ control.Shutdown) (struct{}, error) {
				close(started)
				<-ctx.Done()
				ended <- ctx.Err()
				return struct{}{}, ctx.Err()
			}),
		}, func(err error) (string, string) { return "internal", err.Error() })
	}()
	c := control.NewClient(a)
	go func() { <-started; c.Close() }()
	if err := c.Call(t.Context(), control.VerbShutdown, control.Shutdown{}, nil); err == nil {
		t.Error("the call did not fail")
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the handler's context: %v", err)
	}
	<-served
}

func TestACallThatNeverGotItsTurnLeavesTheConnection(t *testing.T) {
	a, b := net.Pipe()
	release := make(chan struct{})
	go func() {
		_ = control.Serve(t.Context(), b, map[string]control.Handler{
			control.VerbStats: control.Handle(func(context.Context, struct{}) (control.Stats, error) {
				<-release
				return control.Stats{DiskUsed: 7}, nil
			}),
		}, func(err error) (string, string) { return "internal", err.Error() })
	}()
	c := control.NewClient(a)
	defer c.Close()
	first := make(chan error, 1)
	var s control.Stats
	go func() { first <- c.Call(t.Context(), control.VerbStats, nil, &s) }()
	for { // until the first call has its turn, the second may have it
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		err := c.Call(ctx, control.VerbSetClock, control.SetClock{}, nil)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
	}
	close(release)
	if err := <-first; err != nil || s.DiskUsed != 7 {
		t.Errorf("the call in flight: %v, %+v", err, s)
	}
}

func TestOversizedMessageIsRefusedWithoutReadingIt(t *testing.T) {
	a, b := net.Pipe()
	go func() { _, _ = b.Write([]byte{0xff, 0xff, 0xff, 0xff}) }()
	var v any
	if err := control.ReadMessage(a, &v); err == nil {
		t.Error("no error")
	}
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := net.Pipe()
		go func() { _, _ = b.Write(data); b.Close() }()
		var v request
		_ = control.ReadMessage(a, &v)
		a.Close()
	})
}

type request struct {
	Verb string `json:"verb"`
}
