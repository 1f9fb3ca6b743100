//go:build linux

package engine

import (
	"crypto/rand"
	"encoding/hex"
	mrand "math/rand/v2"
	"strings"

	"dhow/internal/errdefs"
)

// The words of generated names: a trait and the surname of somebody who moved
// science, engineering or seafaring on. They are split when a name is made: the
// agent's start does not pay for them.
const (
	nameTraits = `able agile alert amber ample apt ardent balmy bold brave breezy bright brisk calm
		candid cheerful civil clear clever coastal cosmic crisp curious dapper daring deft devoted eager earnest
		elegant fair fearless fine fond frank free fresh gallant gentle gifted glad golden graceful grand hardy
		hearty honest hopeful humble ideal jolly jovial keen kind lively loyal lucid lucky mellow merry mighty
		mild modest nautical neat nifty nimble noble patient placid plucky polite prompt proud quick quiet quirky
		radiant ready refined robust sage salty serene sharp silver sincere smart snug sober spry stately steady
		stellar stoic sturdy sunny swift tender thrifty tidy tranquil trusty upbeat valiant vivid warm watchful
		wise witty zealous zesty`
	nameSurnames = `abel ampere archimedes ardinghelli avicenna babbage bardeen bell bernoulli bohr
		boole born brahe brattain bush carson cerf chandrasekhar clarke colden cook cori curie daguerre darwin
		dijkstra drake edison einstein elion euclid euler faraday fermat fermi feynman franklin galilei gates
		gauss germain goldberg goodall hamilton hawking heisenberg hertz hodgkin hopper hubble hypatia ibnbattuta
		jennings johnson joliot kalam keller kepler khorana kilby knuth kowalevski lagrange lamarr lamport leakey
		leavitt leibniz liskov lovelace lumiere magellan majid mayer mcclintock meitner mendel mendeleev mercator
		mirzakhani morse napier nash newton nightingale nobel noether panini pare pascal pasteur payne perlman
		pike planck poincare ptolemy raman ramanujan ride ritchie roentgen rosalind sagan sammet shannon shockley
		snyder stallman swanson swartz swirles tesla thompson torvalds turing villani volta wescoff wiles
		williams wilson wozniak wright yalow yonath zhenghe`
)

// nameChars is dockerd's rule for names, a leading slash apart.
const nameChars = "[a-zA-Z0-9][a-zA-Z0-9_.-]"

// nameAllowed applies nameChars, the second class at least once.
func nameAllowed(n string) bool {
	for i, c := range []byte(n) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return len(n) > 1
}

// newID returns 64 hexadecimal digits. The first twelve are never all
// decimal, so that a short ID is never read as a number.
func newID() string {
	var b [32]byte
	for {
		_, _ = rand.Read(b[:]) // never fails (crypto/rand)
		id := hex.EncodeToString(b[:])
		if strings.ContainsAny(shortID(id), "abcdef") {
			return id
		}
	}
}

// shortID is the form that people see.
func shortID(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// checkName returns name without its leading slash, or the error for one that
// is not allowed.
func checkName(name string) (string, error) {
	n := strings.TrimPrefix(name, "/")
	if !nameAllowed(n) {
		return "", errdefs.New(errdefs.Invalid, "Invalid container name (%s), only %s are allowed", name, nameChars)
	}
	return n, nil
}

// generateName returns a name that taken does not report: six tries, then a
// digit at its end, then the short ID.
func generateName(id string, taken func(string) bool) string {
	traits, surnames := strings.Fields(nameTraits), strings.Fields(nameSurnames)
	for try := range 12 {
		n := traits[mrand.IntN(len(traits))] + "_" + surnames[mrand.IntN(len(surnames))]
		if try >= 6 {
			n += string(rune('0' + mrand.IntN(10)))
		}
		if !taken(n) {
			return n
		}
	}
	return shortID(id)
}
