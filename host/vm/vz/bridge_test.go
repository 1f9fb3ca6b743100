//go:build unix

package vz

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

// datagrams returns a connected pair of datagram sockets.
func datagrams(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		conns[i] = c
	}
	return conns[0], conns[1]
}

func TestBridge(t *testing.T) {
	guest, machine := datagrams(t)
	usernet, network := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- bridge(machine, network) }()
	for _, size := range []int{1, 60, 1514, 65520 + 14} {
		frame := bytes.Repeat([]byte{byte(size)}, size)
		if _, err := guest.Write(frame); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4+size)
		if _, err := io.ReadFull(usernet, got); err != nil {
			t.Fatal(err)
		}
		if int(binary.BigEndian.Uint32(got)) != size || !bytes.Equal(got[4:], frame) {
			t.Errorf("a frame of %d bytes arrives changed", size)
		}
		// The same bytes the other way, in two writes: a stream has no frames.
		_, _ = usernet.Write(got[:3])
		_, _ = usernet.Write(got[3:])
		back := make([]byte, maxFrame)
		n, err := guest.Read(back)
		if err != nil || !bytes.Equal(back[:n], frame) {
			t.Errorf("a frame of %d bytes comes back with %d, %v", size, n, err)
		}
	}
	_ = usernet.Close()
	if err := <-done; err != nil {
		t.Errorf("bridge: %v", err)
	}
}

func TestBridgeEndsWithTheMachine(t *testing.T) {
	_, machine := datagrams(t)
	usernet, network := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- bridge(machine, network) }()
	_ = machine.Close()
	if err := <-done; err != nil {
		t.Errorf("bridge: %v", err)
	}
	if _, err := usernet.Read(make([]byte, 1)); err == nil {
		t.Error("the network's side is still open")
	}
}

func TestBridgeRefusesALyingLength(t *testing.T) {
	_, machine := datagrams(t)
	usernet, network := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- bridge(machine, network) }()
	_, _ = usernet.Write([]byte{0xff, 0xff, 0xff, 0xff})
	if err := <-done; err == nil || !strings.Contains(err.Error(), "4294967295") {
		t.Errorf("bridge: %v", err)
	}
}
