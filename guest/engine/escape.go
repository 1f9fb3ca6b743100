//go:build linux

package engine

import (
	"errors"
	"io"
	"strings"

	"dhow/internal/errdefs"
)

// errDetached ends the reading of a client's input when it typed the detach
// keys.
var errDetached = errors.New("read escape sequence")

// defaultDetachKeys is ctrl-p ctrl-q.
var defaultDetachKeys = []byte{16, 17}

// parseKeys reads a key sequence such as "ctrl-p,ctrl-q" or "a,b": single
// characters, or ctrl- and one of a–z @ [ \ ] ^ _. "" is the default.
func parseKeys(s string) ([]byte, error) {
	if s == "" {
		return defaultDetachKeys, nil
	}
	var keys []byte
	for _, k := range strings.Split(s, ",") {
		c, ctrl := strings.CutPrefix(k, "ctrl-")
		switch {
		case len(k) == 1:
			keys = append(keys, k[0])
		case ctrl && len(c) == 1 && c[0] >= 'a' && c[0] <= 'z':
			keys = append(keys, c[0]-'a'+1)
		case ctrl && len(c) == 1 && c[0] == '@':
			keys = append(keys, 0)
		case ctrl && len(c) == 1 && c[0] >= '[' && c[0] <= '_':
			keys = append(keys, c[0]-'['+27)
		default:
			return nil, errdefs.New(errdefs.Invalid, "Invalid detach keys (%s) provided: Unknown character: '%s'", s, k)
		}
	}
	return keys, nil
}

// escapeReader passes r on and ends with errDetached at the key sequence. A
// begun sequence is held back until the next key shows what it is.
type escapeReader struct {
	r    io.Reader
	keys []byte
	pos  int // keys seen so far
	out  []byte
	err  error
	buf  [4096]byte
}

func (e *escapeReader) Read(p []byte) (int, error) {
	for len(e.out) == 0 {
		if e.err != nil {
			return 0, e.err
		}
		n, err := e.r.Read(e.buf[:])
		e.out = e.out[:0]
		for _, b := range e.buf[:n] {
			if b != e.keys[e.pos] {
				e.out = append(e.out, e.keys[:e.pos]...)
				e.pos = 0
			}
			if b == e.keys[e.pos] {
				if e.pos++; e.pos == len(e.keys) {
					e.err = errDetached
					break
				}
				continue
			}
			e.out = append(e.out, b)
		}
		if e.err == nil && err != nil {
			e.out, e.pos, e.err = append(e.out, e.keys[:e.pos]...), 0, err
		}
	}
	n := copy(p, e.out)
	e.out = e.out[n:]
	return n, nil
}
