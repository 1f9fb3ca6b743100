//go:build linux

package engine

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"
	"time"
)

// slowClient takes nothing until it is let.
type slowClient struct {
	let <-chan struct{}
	bytes.Buffer
}

func (s *slowClient) Write(b []byte) (int, error) {
	<-s.let
	return s.Buffer.Write(b)
}

// attach is arm and begin at once; nil drops a stream.
func attach(s *stdio, out, err io.Writer) *client {
	c := s.arm(out != nil, err != nil)
	c.begin(out, err)
	return c
}

type deadClient struct{}

func (deadClient) Write([]byte) (int, error) { return 0, errors.New("gone") }

func TestEveryClientSeesEveryByteFromTheFirst(t *testing.T) {
	s := newStdio(false, false)
	var out, errs, both bytes.Buffer
	a := attach(s, &out, nil)
	b := attach(s, nil, &errs)
	c := attach(s, &both, &both)
	d := attach(s, deadClient{}, deadClient{})
	e, err := s.open(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = e.stdout.WriteString("to out\n")
	_, _ = e.stderr.WriteString("to err\n")
	e.close()
	s.finish(drainTimeout)
	for _, x := range []*client{a, b, c, d} {
		<-x.done
	}
	if out.String() != "to out\n" || errs.String() != "to err\n" || both.Len() != 14 {
		t.Errorf("%q %q %q", out.String(), errs.String(), both.String())
	}
	late := attach(s, &out, nil)
	<-late.done
}

func TestASlowClientHoldsUpButLosesNothing(t *testing.T) {
	s := newStdio(false, false)
	let := make(chan struct{})
	slow := &slowClient{let: let}
	var fast bytes.Buffer
	a, b := attach(s, slow, nil), attach(s, &fast, nil)
	e, err := s.open(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 4*clientBuffer/16)
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		_, _ = e.stdout.Write(data)
		e.close()
	}()
	select {
	case <-wrote:
		t.Fatal("four times the buffer was written to a client that takes nothing")
	case <-time.After(100 * time.Millisecond):
	}
	close(let)
	<-wrote
	s.finish(drainTimeout)
	<-a.done
	<-b.done
	if !bytes.Equal(slow.Bytes(), data) || !bytes.Equal(fast.Bytes(), data) {
		t.Errorf("%d and %d bytes of %d", slow.Len(), fast.Len(), len(data))
	}
}

func TestAClientThatDiesLetsTheProcessGoOn(t *testing.T) {
	s := newStdio(false, false)
	let := make(chan struct{})
	defer close(let)
	a := attach(s, &slowClient{let: let}, nil)
	e, err := s.open(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		_, _ = e.stdout.Write(make([]byte, 3*clientBuffer))
		e.close()
	}()
	time.Sleep(20 * time.Millisecond)
	a.kill()
	<-wrote
	s.finish(drainTimeout)
}

func TestFinishDoesNotWaitForThoseWhoKeepThePipe(t *testing.T) {
	s := newStdio(false, true)
	e, err := s.open(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close() // as a process would that survives its parent
	begun := time.Now()
	s.finish(50 * time.Millisecond)
	if d := time.Since(begun); d > time.Second {
		t.Errorf("took %v", d)
	}
	s.finish(0)
	if _, err := s.write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

func TestInputReachesTheProcessAndEnds(t *testing.T) {
	for name, early := range map[string]bool{"closed before the start": true, "closed after it": false} {
		s := newStdio(false, true)
		a := &attachment{s: AttachStreams{Stdin: bytes.NewReader([]byte("typed"))}, stdin: true, closeStdin: true}
		a.arm(s, false, false)
		if early {
			a.s.Stdin = bytes.NewReader(nil)
		}
		var wg sync.WaitGroup
		wg.Go(func() { _ = a.run(t.Context()) })
		if early {
			time.Sleep(10 * time.Millisecond)
		}
		e, err := s.open(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(e.stdin)
		if want := map[bool]string{true: "", false: "typed"}[early]; string(got) != want || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		e.close()
		s.finish(drainTimeout)
		wg.Wait()
	}
}

func TestTheEndOfInputEndsAnAttachmentThatDoesNotOwnIt(t *testing.T) {
	s := newStdio(false, true)
	var out bytes.Buffer
	e, err := s.open(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.finish(0)
	defer e.close()
	r, w := io.Pipe()
	done := make(chan error)
	a := &attachment{s: AttachStreams{Stdin: r, Stdout: &out}, stdin: true}
	a.arm(s, true, false)
	go func() { done <- a.run(t.Context()) }()
	_, _ = w.Write([]byte("x"))
	_ = w.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	one := make([]byte, 1)
	if n, _ := e.stdin.Read(one); n != 1 {
		t.Error("the input did not arrive")
	}
	if _, err := s.write([]byte("y")); err != nil {
		t.Errorf("the process's input ended with the client's: %v", err)
	}
}

func TestDetachKeysEndTheAttachmentOfATerminal(t *testing.T) {
	s := newStdio(true, true)
	defer s.finish(0)
	a := &attachment{s: AttachStreams{Stdin: bytes.NewReader([]byte("\x10\x11"))}, stdin: true, keys: defaultDetachKeys}
	a.arm(s, true, true)
	if err := a.run(t.Context()); !errors.Is(err, errDetached) {
		t.Error(err)
	}
}

func TestAnAttachmentEndsWithItsClient(t *testing.T) {
	s := newStdio(false, true)
	defer s.finish(0)
	gone := make(chan struct{})
	r, w := io.Pipe()
	defer w.Close()
	done := make(chan error)
	a := &attachment{s: AttachStreams{Stdin: r, Stdout: io.Discard, Closed: gone}, stdin: true}
	a.arm(s, true, false)
	go func() { done <- a.run(t.Context()) }()
	close(gone)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
