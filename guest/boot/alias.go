//go:build linux

package boot

import (
	"errors"
	"os"
	"path"
	"strings"
)

// resolve returns the names of the modules that alias stands for: the module
// of that name, else those whose alias pattern in modules.alias matches, in the
// file's order, each once.
func (m *modules) resolve(alias string) ([]string, error) {
	if _, ok := m.file[normalize(alias)]; ok {
		return []string{normalize(alias)}, nil
	}
	text, err := os.ReadFile(path.Join(m.dir, "modules.alias"))
	if err != nil {
		return nil, err
	}
	return matchAliases(string(text), alias), nil
}

// matchAliases parses modules.alias: lines "alias PATTERN MODULE".
func matchAliases(text, alias string) []string {
	alias = normalize(alias)
	var out []string
	seen := map[string]bool{}
	for line := range strings.SplitSeq(text, "\n") {
		rest, ok := strings.CutPrefix(line, "alias ")
		if !ok {
			continue
		}
		// The module is the last word: a pattern may hold spaces.
		i := strings.LastIndexByte(rest, ' ')
		if i <= 0 {
			continue
		}
		if mod := normalize(rest[i+1:]); !seen[mod] && match(normalize(rest[:i]), alias) {
			seen[mod] = true
			out = append(out, mod)
		}
	}
	return out
}

// match is fnmatch(3) without flags: * ? [set] [!set].
func match(pattern, s string) bool {
	// Iterative with one point of return: a later * makes earlier ones final.
	var p, i int
	star, next := -1, 0
	for i < len(s) {
		if p < len(pattern) {
			switch pattern[p] {
			case '*':
				star, next = p, i
				p++
				continue
			case '?':
				p++
				i++
				continue
			case '[':
				if n, ok, valid := matchSet(pattern[p:], s[i]); valid {
					if ok {
						p += n
						i++
						continue
					}
					break
				}
				fallthrough
			default:
				if pattern[p] == s[i] {
					p++
					i++
					continue
				}
			}
		}
		if star < 0 {
			return false
		}
		next++
		p, i = star+1, next
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// matchSet matches c against the set that pattern starts with; n is the set's
// length, valid is false if it has no end.
func matchSet(pattern string, c byte) (n int, ok, valid bool) {
	i, not := 1, false
	if i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^') {
		not = true
		i++
	}
	for first := true; i < len(pattern); first = false {
		if pattern[i] == ']' && !first {
			return i + 1, ok != not, true
		}
		lo, hi := pattern[i], pattern[i]
		if i+2 < len(pattern) && pattern[i+1] == '-' && pattern[i+2] != ']' {
			hi = pattern[i+2]
			i += 2
		}
		if lo <= c && c <= hi {
			ok = true
		}
		i++
	}
	return 0, false, false
}

// Modprobe is /sbin/modprobe as the kernel calls it: modprobe -q -- ALIAS. It
// loads what the alias stands for and returns the exit status: 1 if there is
// nothing of that name or it could not be loaded, said on standard error unless
// -q was given.
func Modprobe(args []string) int {
	quiet := false
	var names []string
	for i, a := range args {
		if a == "--" {
			names = append(names, args[i+1:]...)
			break
		}
		if strings.HasPrefix(a, "-") {
			quiet = quiet || a == "-q" || a == "--quiet"
			continue
		}
		names = append(names, a)
	}
	if len(names) == 0 {
		_, _ = os.Stderr.WriteString("modprobe: no module named; usage: modprobe [-q] [--] NAME\n")
		return 1
	}
	// Only the first is a module: the kernel gives one, and further words would
	// be module parameters, which this kernel never asks for.
	err := modprobe(names[0])
	if err == nil {
		return 0
	}
	if !quiet {
		_, _ = os.Stderr.WriteString("modprobe: " + names[0] + ": " + err.Error() + "\n")
	}
	return 1
}

func modprobe(alias string) error {
	m, err := kernelModules()
	if err != nil {
		return err
	}
	names, err := m.resolve(alias)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return errNoModule
	}
	// Of several candidates, one that loads is enough (drivers of one device).
	var errs []error
	for _, n := range names {
		if err := m.Load(n); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == len(names) {
		return errors.Join(errs...)
	}
	return nil
}
