package vz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
)

// maxFrame is the largest Ethernet frame in bytes: an IP packet of 65535, the
// header and a VLAN tag.
const maxFrame = 65535 + 14 + 4

// bridge copies Ethernet frames between machine, a datagram socket with a frame
// in each datagram, and network, a stream with a 4-byte big-endian length
// before each frame. It returns when one of the two ends, with both closed; the
// error is nil if one of them was closed.
func bridge(machine, network net.Conn) error {
	var wg sync.WaitGroup
	var errs [2]error
	run := func(err *error, copy func(machine, network net.Conn) error) {
		wg.Go(func() {
			*err = copy(machine, network)
			_ = machine.Close()
			_ = network.Close()
		})
	}
	run(&errs[0], toNetwork)
	run(&errs[1], toMachine)
	wg.Wait()
	for i, err := range errs {
		if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, io.EOF) {
			errs[i] = nil
		}
	}
	return errors.Join(errs[:]...)
}

func toNetwork(machine, network net.Conn) error {
	b := make([]byte, 4+maxFrame)
	for {
		n, err := machine.Read(b[4:])
		if err != nil {
			return err
		}
		if n == 0 {
			continue
		}
		binary.BigEndian.PutUint32(b, uint32(n))
		if _, err := network.Write(b[:4+n]); err != nil {
			return err
		}
	}
}

func toMachine(machine, network net.Conn) error {
	b := make([]byte, maxFrame)
	for {
		var size [4]byte
		if _, err := io.ReadFull(network, size[:]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(size[:])
		if n > maxFrame {
			return fmt.Errorf("a frame of %d bytes from the network, at most %d", n, maxFrame)
		}
		if _, err := io.ReadFull(network, b[:n]); err != nil {
			return err
		}
		// A machine that does not keep up loses frames, as on any network.
		if _, err := machine.Write(b[:n]); err != nil && !errors.Is(err, syscall.ENOBUFS) {
			return err
		}
	}
}
