package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"dhow/host/vm/vhost/vsockdev/internal/vmguest/ports"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

func main() {
	err := serve()
	fmt.Println("vmguest:", err)
	os.Exit(1) // the kernel panics
}

func serve() error {
	if err := loadModules("/modules"); err != nil {
		return err
	}
	// vsock's package wants the device, as it asks it for the context ID.
	if err := errors.Join(os.MkdirAll("/dev", 0o755), unix.Mount("dev", "/dev", "devtmpfs", 0, "")); err != nil {
		return err
	}
	failed := make(chan error)
	for port, handle := range map[uint32]func(*vsock.Conn){
		ports.Echo: echo, ports.Relay: relay, ports.Sink: sink, ports.Source: source,
		ports.Stuck: stuck, ports.Late: late, ports.Close: func(*vsock.Conn) {}, ports.Power: power,
	} {
		l, err := vsock.Listen(port, nil)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					failed <- err
					return
				}
				go func() {
					defer c.Close()
					handle(c.(*vsock.Conn))
				}()
			}
		}()
	}
	up, err := vsock.Dial(vsock.Host, ports.Up, nil)
	if err != nil {
		return err
	}
	defer up.Close()
	return <-failed
}

// loadModules loads all modules in dir, whatever their order: one that misses
// a symbol of another is tried again as long as any can be loaded.
func loadModules(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	for err == nil && len(files) > 0 {
		var later []string
		var failed error
		for _, name := range files {
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			err = unix.FinitModule(int(f.Fd()), "", 0)
			f.Close()
			if err != nil && !errors.Is(err, unix.EEXIST) {
				later, failed = append(later, name), errors.Join(failed, fmt.Errorf("load %s: %w", name, err))
			}
		}
		if len(later) == len(files) {
			return failed
		}
		files = later
	}
	return err
}

func echo(c *vsock.Conn) {
	if _, err := io.Copy(c, c); err == nil {
		_ = c.CloseWrite()
	}
	// The peer may still be reading; it closes first.
	_, _ = io.Copy(io.Discard, c)
}

func relay(c *vsock.Conn) {
	var port uint32
	if binary.Read(c, binary.BigEndian, &port) != nil {
		return
	}
	back, err := vsock.Dial(vsock.Host, port, nil)
	if err != nil {
		return
	}
	defer back.Close()
	done := make(chan struct{})
	half := func(dst, src *vsock.Conn) {
		if _, err := io.Copy(dst, src); err != nil {
			_ = dst.Close()
			_ = src.Close()
			return
		}
		_ = dst.CloseWrite()
	}
	go func() {
		half(back, c)
		close(done)
	}()
	half(c, back)
	<-done
}

func sink(c *vsock.Conn) {
	n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
	_ = binary.Write(c, binary.BigEndian, n)
}

func source(c *vsock.Conn) {
	var n int64
	if binary.Read(c, binary.BigEndian, &n) != nil {
		return
	}
	buf := make([]byte, 256<<10)
	for n > 0 {
		k, err := c.Write(buf[:min(n, int64(len(buf)))])
		if err != nil {
			return
		}
		n -= int64(k)
	}
	_ = c.CloseWrite()
	_, _ = io.Copy(io.Discard, c)
}

func stuck(*vsock.Conn) { select {} }

func late(c *vsock.Conn) {
	var h struct{ Wait, Port uint32 }
	if binary.Read(c, binary.BigEndian, &h) != nil {
		return
	}
	time.Sleep(time.Duration(h.Wait) * time.Millisecond)
	n, err := io.Copy(io.Discard, c)
	if err != nil {
		n = -1
	}
	var back net.Conn
	if back, err = vsock.Dial(vsock.Host, h.Port, nil); err == nil {
		_ = binary.Write(back, binary.BigEndian, n)
		_ = back.Close()
	}
}

func power(c *vsock.Conn) {
	var b [1]byte
	_, _ = io.ReadFull(c, b[:])
	if b[0] == 'r' {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
