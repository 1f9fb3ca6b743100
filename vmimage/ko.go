package vmimage

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"path"
	"sort"
	"strings"
)

// A module is one kernel module of the kernel package.
type module struct {
	name    string // the kernel's: underscores
	file    string // below lib/modules/<version>
	data    []byte
	depends []string // names
	pre     []string // names of soft dependencies that are to be loaded before
	aliases []string
}

// moduleName is the kernel's name of the module in a file.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

// parseModule reads the module's own description, its .modinfo section.
func parseModule(file string, data []byte) (module, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return module{}, fmt.Errorf("%s: %w", file, err)
	}
	sec := f.Section(".modinfo")
	if sec == nil {
		return module{}, fmt.Errorf("%s: no .modinfo", file)
	}
	info, err := sec.Data()
	if err != nil {
		return module{}, fmt.Errorf("%s: %w", file, err)
	}
	m := module{name: moduleName(file), file: file, data: slim(data)}
	for kv := range strings.SplitSeq(string(info), "\x00") {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "depends":
			for d := range strings.SplitSeq(v, ",") {
				if d != "" {
					m.depends = append(m.depends, strings.ReplaceAll(d, "-", "_"))
				}
			}
		case "softdep":
			for _, w := range softPre(v) {
				m.pre = append(m.pre, strings.ReplaceAll(w, "-", "_"))
			}
		case "alias":
			m.aliases = append(m.aliases, v)
		}
	}
	return m, nil
}

// softPre returns the words after "pre:" in a soft dependency.
func softPre(v string) []string {
	var out []string
	pre := false
	for _, w := range strings.Fields(v) {
		switch w {
		case "pre:":
			pre = true
		case "post:":
			pre = false
		default:
			if pre {
				out = append(out, w)
			}
		}
	}
	return out
}

// closure returns the named modules with all that they need, sorted by file.
// builtin are the names of what the kernel holds itself. A soft dependency that
// is in neither is left out; anything else that is missing is an error.
func closure(all map[string]module, builtin map[string]bool, names []string) ([]module, error) {
	in := map[string]bool{}
	var visit func(name, why string, soft bool) error
	visit = func(name, why string, soft bool) error {
		if in[name] || builtin[name] {
			return nil
		}
		m, ok := all[name]
		if !ok {
			if soft {
				return nil
			}
			return fmt.Errorf("the kernel package has no module %s (needed by %s)", name, why)
		}
		in[name] = true
		for _, d := range m.depends {
			if err := visit(d, name, false); err != nil {
				return err
			}
		}
		for _, d := range m.pre {
			if err := visit(d, name, true); err != nil {
				return err
			}
		}
		return nil
	}
	for _, n := range names {
		if err := visit(n, "the image", false); err != nil {
			return nil, err
		}
	}
	out := make([]module, 0, len(in))
	for n := range in {
		out = append(out, all[n])
	}
	sort.Slice(out, func(i, j int) bool { return out[i].file < out[j].file })
	return out, nil
}

// loadOrder returns all that m needs, what is to be loaded first first. It
// fails on a cycle.
func loadOrder(by map[string]module, m module) ([]module, error) {
	var out []module
	state := map[string]int{} // 1: being visited, 2: done
	var visit func(n string) error
	visit = func(n string) error {
		d, ok := by[n]
		if !ok || state[n] == 2 { // not ok: built in
			return nil
		}
		if state[n] == 1 {
			return fmt.Errorf("modules %s and %s need each other", n, m.name)
		}
		state[n] = 1
		for _, x := range append(append([]string(nil), d.pre...), d.depends...) {
			if err := visit(x); err != nil {
				return err
			}
		}
		state[n] = 2
		if n != m.name {
			out = append(out, d)
		}
		return nil
	}
	return out, visit(m.name)
}

// depmod makes modules.dep and modules.alias of the modules, in depmod's forms.
func depmod(mods []module) (dep, alias []byte, err error) {
	by := map[string]module{}
	for _, m := range mods {
		by[m.name] = m
	}
	var d, a bytes.Buffer
	a.WriteString("# Aliases extracted from modules themselves.\n")
	for _, m := range mods {
		order, err := loadOrder(by, m)
		if err != nil {
			return nil, nil, err
		}
		d.WriteString(m.file + ":")
		for i := len(order) - 1; i >= 0; i-- { // the last is loaded first
			d.WriteString(" " + order[i].file)
		}
		d.WriteByte('\n')
		for _, al := range m.aliases {
			fmt.Fprintf(&a, "alias %s %s\n", al, m.name)
		}
	}
	return d.Bytes(), a.Bytes(), nil
}

// addModules puts modules and their index into a root.
func addModules(t tree, version string, mods []module) error {
	dep, alias, err := depmod(mods)
	if err != nil {
		return err
	}
	dir := "lib/modules/" + version
	for _, m := range mods {
		t.file(dir+"/"+m.file, 0o644, m.data)
	}
	t.file(dir+"/modules.dep", 0o644, dep)
	t.file(dir+"/modules.alias", 0o644, alias)
	return nil
}

// slim takes from a module what only costs time when it is loaded: the
// signature (hashing the module and an RSA operation: the root that holds it is
// verified as a whole by the host) and the type information for BPF tracing.
// What remains is not moved: the section is only given a name that the kernel
// does not look for.
func slim(data []byte) []byte {
	const mark = "~Module signature appended~\n"
	if bytes.HasSuffix(data, []byte(mark)) {
		// struct module_signature: 12 bytes, the last 4 the length (big-endian).
		if end := len(data) - len(mark) - 12; end > 0 {
			if sig := int(binary.BigEndian.Uint32(data[end+8:])); sig > 0 && sig < end {
				data = data[:end-sig]
			}
		}
	}
	data = bytes.Clone(data)
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil || f.Section(".shstrtab") == nil || f.Section(".BTF_ids") != nil {
		return data // with .BTF_ids it offers functions to BPF, which needs the types
	}
	s := f.Section(".shstrtab")
	names := data[s.Offset : s.Offset+s.Size]
	if i := bytes.Index(names, []byte("\x00.BTF\x00")); i >= 0 {
		copy(names[i+1:], ".btf")
	}
	return data
}
