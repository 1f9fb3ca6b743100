package splice_test

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"dhow/host/splice"
	"dhow/internal/testkit"
)

// pair returns two ends of a unix connection.
func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(testkit.ShortDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ca, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	cb, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ca.Close(); cb.Close() })
	return ca.(*net.UnixConn), cb.(*net.UnixConn)
}

func TestJoinHalfClosesAndCarriesBytes(t *testing.T) {
	testkit.NoLeaks(t)
	user, near := pair(t)
	far, server := pair(t)
	done := make(chan error, 1)
	go func() { done <- splice.Join(near, far) }()

	sent := make([]byte, 1<<20)
	_, _ = rand.Read(sent)
	go func() {
		_, _ = user.Write(sent)
		_ = user.CloseWrite()
	}()
	got, err := io.ReadAll(server) // ends only if the half-close came through
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("server got %d bytes, %v", len(got), err)
	}
	// The other direction is still open after the first has ended.
	go func() {
		_, _ = server.Write(sent)
		_ = server.CloseWrite()
	}()
	back, err := io.ReadAll(user)
	if err != nil || !bytes.Equal(back, sent) {
		t.Fatalf("user got %d bytes, %v", len(back), err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestJoinEndsBothOnError(t *testing.T) {
	testkit.NoLeaks(t)
	user, near := pair(t)
	far, server := pair(t)
	done := make(chan error, 1)
	go func() { done <- splice.Join(near, far) }()
	// The user goes away without reading what the server sends.
	_ = user.Close()
	big := make([]byte, 1<<20)
	_ = server.SetDeadline(time.Now().Add(10 * time.Second))
	for {
		if _, err := server.Write(big); err != nil {
			break
		}
	}
	select {
	case err := <-done:
		if err == nil {
			t.Fatal("no error")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a broken direction did not end the other")
	}
}

func BenchmarkJoin(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	two := func() (net.Conn, net.Conn) {
		x, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		y, err := l.Accept()
		if err != nil {
			b.Fatal(err)
		}
		return x, y
	}
	user, near := two()
	far, server := two()
	go func() { _ = splice.Join(near, far) }()
	block := make([]byte, 256<<10)
	b.SetBytes(int64(len(block)))
	go func() {
		for i := 0; i < b.N; i++ {
			_, _ = user.Write(block)
		}
		_ = user.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(io.Discard, server)
	_ = server.Close()
}
