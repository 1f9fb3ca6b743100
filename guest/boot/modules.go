//go:build linux

package boot

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// errNoModule means that no module of that name, and no built-in, is known.
var errNoModule = errors.New("no such module")

// modules loads kernel modules below one /lib/modules/<version>, whose
// modules.dep names for each file the files that it needs, all of them, the
// last to be loaded first (depmod's order). Safe for concurrent use.
type modules struct {
	dir  string
	file map[string]string   // module name → file below dir
	deps map[string][]string // file → files
	load func(file string) error

	mu   sync.Mutex
	once map[string]*loading // by file
}

type loading struct {
	done chan struct{}
	err  error
}

// openModules reads dir's modules.dep.
func openModules(dir string) (*modules, error) {
	dep, err := os.ReadFile(path.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	m := &modules{dir: dir, once: map[string]*loading{}}
	m.file, m.deps = parseDep(string(dep))
	m.load = m.finit
	return m, nil
}

// adopt takes over what another index of the same kernel's modules has loaded
// or is loading.
func (m *modules) adopt(from *modules) {
	from.mu.Lock()
	defer from.mu.Unlock()
	for f, l := range from.once {
		m.once[f] = l
	}
}

// kernelModules opens the modules of the running kernel.
func kernelModules() (*modules, error) {
	v, err := kernelRelease()
	if err != nil {
		return nil, err
	}
	return openModules("/lib/modules/" + v)
}

func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// parseDep parses modules.dep.
func parseDep(text string) (file map[string]string, deps map[string][]string) {
	file, deps = map[string]string{}, map[string][]string{}
	for line := range strings.SplitSeq(text, "\n") {
		f, rest, ok := strings.Cut(line, ":")
		if !ok || f == "" || f[0] == '#' {
			continue
		}
		file[moduleName(f)] = f
		if d := strings.Fields(rest); len(d) > 0 {
			deps[f] = d
		}
	}
	return file, deps
}

// moduleName is the kernel's name of the module in a file: "a/b-c.ko" → "b_c".
func moduleName(file string) string {
	return normalize(strings.TrimSuffix(path.Base(file), ".ko"))
}

// normalize makes '-' and '_' the same, outside of brackets.
func normalize(s string) string {
	if strings.IndexByte(s, '-') < 0 {
		return s
	}
	b, in := []byte(s), false
	for i, c := range b {
		switch {
		case c == '[':
			in = true
		case c == ']':
			in = false
		case c == '-' && !in:
			b[i] = '_'
		}
	}
	return string(b)
}

// Load loads modules by name, each after what it needs, in the order given. A
// module that is loaded already is no error. All are tried; the errors are
// joined.
func (m *modules) Load(names ...string) error {
	var errs []error
	for _, n := range names {
		f, ok := m.file[normalize(n)]
		if !ok {
			errs = append(errs, fmt.Errorf("module %s: %w", n, errNoModule))
			continue
		}
		if err := m.loadFile(f); err != nil {
			errs = append(errs, fmt.Errorf("module %s: %w", n, err))
		}
	}
	return errors.Join(errs...)
}

// loadFile loads f after what it needs; modules.dep has no cycles (the builder
// refuses them), so the recursion by way of once cannot wait for itself.
func (m *modules) loadFile(f string) error {
	d := m.deps[f]
	for i := len(d) - 1; i >= 0; i-- {
		if err := m.loadOnce(d[i]); err != nil {
			return fmt.Errorf("%s: %w", moduleName(d[i]), err)
		}
	}
	return m.loadOnce(f)
}

func (m *modules) loadOnce(f string) error {
	m.mu.Lock()
	l := m.once[f]
	if l != nil {
		m.mu.Unlock()
		<-l.done
		return l.err
	}
	l = &loading{done: make(chan struct{})}
	m.once[f] = l
	m.mu.Unlock()
	l.err = m.load(f)
	close(l.done)
	return l.err
}

func (m *modules) finit(f string) error {
	fd, err := unix.Open(path.Join(m.dir, f), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.FinitModule(fd, "", 0); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}
