package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
)

// Ports. The host listens on PortUp, to which the probe dials when it serves,
// and keeps the connection for as long as it lives.
const (
	PortUp      uint32 = 9000
	PortEcho    uint32 = 9001 // sends back what it receives, then ends its stream when the peer has ended its own
	PortCommand uint32 = 9002 // one command in a line, one line back: "ok" or an error's text
	PortSink    uint32 = 9003 // accepts and reads nothing
)

// Commands on PortCommand.
const (
	PowerOff = "poweroff" // no answer: the connection ends with the machine
	Crash    = "crash"    // no answer either
	Dial     = "dial"     // "dial PORT": connects to the host's PORT and echoes there
)

// CrashMark is in the reason of the machine's end after Crash.
const CrashMark = "panic"

// Guest is what the probe needs of the machine that it runs in.
type Guest interface {
	Dial(port uint32) (net.Conn, error) // to the host
	Listen(port uint32) (net.Listener, error)
	PowerOff()
	Crash()
}

// Serve serves until ctx ends. It returns an error if it cannot begin to.
func Serve(ctx context.Context, g Guest) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	var open []io.Closer
	closeAll := func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range open {
			_ = c.Close()
		}
		open = nil
	}
	defer closeAll()
	keep := func(c io.Closer) {
		mu.Lock()
		defer mu.Unlock()
		open = append(open, c)
		if ctx.Err() != nil {
			_ = c.Close()
		}
	}
	serve := func(port uint32, handle func(net.Conn)) error {
		l, err := g.Listen(port)
		if err != nil {
			return err
		}
		keep(l)
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				keep(c)
				wg.Go(func() { handle(c) })
			}
		})
		return nil
	}
	err := errors.Join(
		serve(PortEcho, echo),
		serve(PortSink, func(net.Conn) {}),
		serve(PortCommand, func(c net.Conn) {
			defer c.Close()
			line, err := bufio.NewReader(c).ReadString('\n')
			if err != nil {
				return
			}
			answer := "ok"
			if err := command(&wg, keep, g, strings.TrimSpace(line)); err != nil {
				answer = err.Error()
			}
			_, _ = io.WriteString(c, answer+"\n")
		}))
	if err != nil {
		return err
	}
	up, err := g.Dial(PortUp)
	if err != nil {
		return err
	}
	keep(up)
	<-ctx.Done()
	return nil
}

func command(wg *sync.WaitGroup, keep func(io.Closer), g Guest, line string) error {
	name, arg, _ := strings.Cut(line, " ")
	switch name {
	case PowerOff:
		g.PowerOff()
		return nil
	case Crash:
		g.Crash()
		return nil
	case Dial:
		port, err := strconv.ParseUint(arg, 10, 32)
		if err != nil {
			return err
		}
		c, err := g.Dial(uint32(port))
		if err != nil {
			return err
		}
		keep(c)
		wg.Go(func() { echo(c) })
		return nil
	}
	return fmt.Errorf("unknown command %q", line)
}

func echo(c net.Conn) {
	_, err := io.Copy(c, c)
	if w, ok := c.(interface{ CloseWrite() error }); ok && err == nil {
		_ = w.CloseWrite()
	}
	_ = c.Close()
}
