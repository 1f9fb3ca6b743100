package vm

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
)

const (
	consoleMax  = 4 << 20 // bytes of console.log before it is turned over
	consoleTail = 16 << 10
	// ConsoleLines is how many last lines of the console an ExitError has.
	ConsoleLines = 20
)

// Console keeps what the guest writes to its console: in a file that is turned
// over (to NAME.1) when a machine starts and when it exceeds 4 MiB, since the
// guest is not trusted with the host's disk, and the last bytes in memory.
type Console struct {
	path string

	mu   sync.Mutex
	f    *os.File
	n    int
	tail []byte
}

// OpenConsole turns over the log at path and opens a new one, mode 0600.
func OpenConsole(path string) (*Console, error) {
	c := &Console{path: path}
	if err := c.turn(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Console) turn() error {
	if c.f != nil {
		_ = c.f.Close()
		c.f = nil
	}
	if err := os.Rename(c.path, c.path+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(c.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	c.f, c.n = f, 0
	return nil
}

// Write appends p. A log that cannot be written (a full disk) is no reason to
// stop a machine: the bytes are still kept in memory, and no error is returned.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tail = append(c.tail, p...)
	if over := len(c.tail) - consoleTail; over > consoleTail {
		c.tail = append(c.tail[:0], c.tail[over:]...)
	}
	if c.f != nil {
		_, _ = c.f.Write(p)
		if c.n += len(p); c.n >= consoleMax {
			_ = c.turn()
		}
	}
	return len(p), nil
}

// Follow copies r, the guest's console, until it ends.
func (c *Console) Follow(r io.Reader) { _, _ = io.CopyBuffer(onlyWriter{c}, r, make([]byte, 4096)) }

type onlyWriter struct{ io.Writer }

// Close closes the log. Tail goes on working.
func (c *Console) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.f == nil {
		return nil
	}
	err := c.f.Close()
	c.f = nil
	return err
}

// Tail returns the last n lines, without control characters.
func (c *Console) Tail(n int) []string {
	c.mu.Lock()
	text := string(bytes.TrimRight(c.tail, "\r\n"))
	c.mu.Unlock()
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	for i, l := range lines {
		lines[i] = printable(l)
	}
	return lines
}

// Panic returns what the guest's kernel said last when it panicked, e.g.
// "Attempted to kill init! exitcode=0x00000100", or "".
func (c *Console) Panic() string {
	const mark = "Kernel panic - not syncing: "
	c.mu.Lock()
	text := string(c.tail)
	c.mu.Unlock()
	i := strings.LastIndex(text, mark)
	if i < 0 {
		return ""
	}
	line, _, _ := strings.Cut(text[i+len(mark):], "\n")
	return strings.TrimSpace(printable(line))
}

// GuestReset is the end of a machine whose guest has reset it, which no guest
// of ours does unless its kernel panics.
func (c *Console) GuestReset() *ExitError {
	e := &ExitError{Reason: "the guest reset it", Console: c.Tail(ConsoleLines)}
	if p := c.Panic(); p != "" {
		e.Reason = "the guest's kernel panicked: " + p
	}
	return e
}

// printable drops what would drive the reader's terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
