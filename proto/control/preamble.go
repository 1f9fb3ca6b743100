package control

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// KeySize is the length in bytes of a boot's key.
const KeySize = 32

// PreambleTimeout bounds the exchange of one preamble.
const PreambleTimeout = 10 * time.Second

// ErrPreamble means that the peer does not hold the key of this boot, or that
// the connection ended first.
var ErrPreamble = errors.New("control: the peer did not prove that it holds this boot's key")

const nonceSize = 16

// side is the side that dials; it goes into the proofs, so that neither
// side's proof can be played back to the other.
type side byte

const (
	fromHost  side = 'h'
	fromGuest side = 'g'
)

// The preamble: the dialer sends a nonce and MAC(key, "dial", direction, port,
// nonce); the acceptor answers MAC(key, "accept", direction, port, nonce).
func proof(key []byte, role string, from side, port uint32, nonce []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(role))
	m.Write([]byte{byte(from)})
	var p [4]byte
	binary.BigEndian.PutUint32(p[:], port)
	m.Write(p[:])
	m.Write(nonce)
	return m.Sum(nil)
}

// ProveHost runs the dialer's half of the preamble on a connection that the
// host dialed to the guest's port; ProveGuest the same for the guest's. They
// return an error that wraps ErrPreamble if the peer is not who it must be. Any
// deadline on c is cleared. The caller closes c.
func ProveHost(c net.Conn, key []byte, port uint32) error { return prove(c, key, fromHost, port) }

// ProveGuest is described at ProveHost.
func ProveGuest(c net.Conn, key []byte, port uint32) error { return prove(c, key, fromGuest, port) }

// AdmitGuest runs the acceptor's half on a connection that the host accepted
// on its port; AdmitHost the same on the guest. Errors as ProveHost's.
func AdmitGuest(c net.Conn, key []byte, port uint32) error { return admit(c, key, fromGuest, port) }

// AdmitHost is described at AdmitGuest.
func AdmitHost(c net.Conn, key []byte, port uint32) error { return admit(c, key, fromHost, port) }

func prove(c net.Conn, key []byte, from side, port uint32) error {
	if err := begin(c, key); err != nil {
		return err
	}
	var nonce [nonceSize]byte
	_, _ = rand.Read(nonce[:]) // never fails (crypto/rand)
	if _, err := c.Write(append(nonce[:], proof(key, "dial", from, port, nonce[:])...)); err != nil {
		return fmt.Errorf("%w: %w", ErrPreamble, err)
	}
	var got [sha256.Size]byte
	if _, err := io.ReadFull(c, got[:]); err != nil {
		return fmt.Errorf("%w: %w", ErrPreamble, err)
	}
	if !hmac.Equal(got[:], proof(key, "accept", from, port, nonce[:])) {
		return ErrPreamble
	}
	return c.SetDeadline(time.Time{})
}

func admit(c net.Conn, key []byte, from side, port uint32) error {
	if err := begin(c, key); err != nil {
		return err
	}
	var got [nonceSize + sha256.Size]byte
	if _, err := io.ReadFull(c, got[:]); err != nil {
		return fmt.Errorf("%w: %w", ErrPreamble, err)
	}
	nonce := got[:nonceSize]
	if !hmac.Equal(got[nonceSize:], proof(key, "dial", from, port, nonce)) {
		return ErrPreamble
	}
	if _, err := c.Write(proof(key, "accept", from, port, nonce)); err != nil {
		return fmt.Errorf("%w: %w", ErrPreamble, err)
	}
	return c.SetDeadline(time.Time{})
}

func begin(c net.Conn, key []byte) error {
	if len(key) != KeySize {
		return fmt.Errorf("%w: the key has %d bytes, want %d", ErrPreamble, len(key), KeySize)
	}
	return c.SetDeadline(time.Now().Add(PreambleTimeout))
}
