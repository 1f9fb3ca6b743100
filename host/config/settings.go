package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"dhow/internal/durable"
	"dhow/internal/errdefs"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// Settings of a machine. In the file a field that is missing or zero means the
// default; what Load returns has every field filled and valid.
type Settings struct {
	CPUs         int      `json:"cpus,omitempty"`          // virtual CPUs
	Memory       int64    `json:"memory,omitempty"`        // bytes
	DiskSize     int64    `json:"disk_size,omitempty"`     // bytes; the data disk's size as the guest sees it
	Driver       string   `json:"driver,omitempty"`        // hypervisor driver; "" = the host's default
	Image        string   `json:"image,omitempty"`         // directory of the VM image; "" = the one that came with dhow
	IdleMinutes  int      `json:"idle_minutes,omitempty"`  // stop the machine after so long without use; 0 = never
	DNS          []string `json:"dns,omitempty"`           // IP addresses of DNS servers; none = the host's resolver
	HostLoopback bool     `json:"host_loopback,omitempty"` // containers reach the host's 127.0.0.1 at host.docker.internal
	Debug        bool     `json:"debug,omitempty"`         // log more, in the guest too
}

// Limits of the settings.
const (
	MinMemory   = 256 * mib
	MinDiskSize = 1 * gib
	MaxDiskSize = 16 << 40
	MaxCPUs     = 64
)

// Host is what defaults and limits depend on.
type Host struct {
	CPUs   int
	Memory int64 // bytes; 0 = unknown
}

// ThisHost describes the computer that the process runs on.
func ThisHost() Host { return Host{CPUs: runtime.NumCPU(), Memory: hostMemory()} }

// WithDefaults returns s with every unset field filled for host h.
func (s Settings) WithDefaults(h Host) Settings {
	if s.CPUs == 0 {
		s.CPUs = max(1, min(h.CPUs, 4))
	}
	if s.Memory == 0 {
		// The default stays small on large hosts: what the guest once touched is
		// not given back on every hypervisor, and its kernel touches some 3 %
		// by booting (measured: 290 MB resident with 1 GiB, 485 MB with 6 GiB).
		s.Memory = 2 * gib
		if h.Memory > 0 {
			s.Memory = max(512*mib, min(4*gib, h.Memory/4))
		}
		s.Memory = s.Memory / mib * mib
	}
	if s.DiskSize == 0 {
		s.DiskSize = 64 * gib
	}
	return s
}

// Validate returns an Invalid error that names the first setting that host h
// cannot satisfy.
func (s Settings) Validate(h Host) error {
	bad := func(format string, a ...any) error { return errdefs.New(errdefs.Invalid, format, a...) }
	switch {
	case s.CPUs < 1 || s.CPUs > min(max(h.CPUs, 1), MaxCPUs):
		return bad("invalid setting cpus=%d: this host has %d; use 1 to %d", s.CPUs, h.CPUs, min(max(h.CPUs, 1), MaxCPUs))
	case s.Memory < MinMemory:
		return bad("invalid setting memory=%s: use at least %s", size(s.Memory), size(MinMemory))
	case s.Memory%mib != 0:
		return bad("invalid setting memory=%d: use a whole number of MiB", s.Memory)
	case h.Memory > 0 && s.Memory > h.Memory:
		return bad("invalid setting memory=%s: this host has %s", size(s.Memory), size(h.Memory))
	case s.DiskSize < MinDiskSize || s.DiskSize > MaxDiskSize:
		return bad("invalid setting disk_size=%s: use %s to %s", size(s.DiskSize), size(MinDiskSize), size(MaxDiskSize))
	case s.DiskSize%mib != 0:
		return bad("invalid setting disk_size=%d: use a whole number of MiB", s.DiskSize)
	case s.IdleMinutes < 0 || s.IdleMinutes > 7*24*60:
		return bad("invalid setting idle_minutes=%d: use 0 (never stop) to 10080", s.IdleMinutes)
	}
	switch s.Driver {
	case "", "qemu", "vz", "hcs", "wsl":
	default:
		return bad("invalid setting driver=%q: use qemu, vz, hcs or wsl", s.Driver)
	}
	for _, d := range s.DNS {
		if _, err := netip.ParseAddr(d); err != nil {
			return bad("invalid setting dns=%q: use IP addresses", d)
		}
	}
	return nil
}

func size(n int64) string {
	return strings.Replace(units.CustomSize("%.4g %s", float64(n), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}), ".0 ", " ", 1)
}

// Load returns the settings of the layout's machine: what the file has, filled
// with the host's defaults, validated. A machine without a file has the
// defaults.
func Load(l Layout, h Host) (Settings, error) {
	s, err := LoadFile(l)
	if err != nil {
		return Settings{}, err
	}
	s = s.WithDefaults(h)
	if err := s.Validate(h); err != nil {
		return Settings{}, fmt.Errorf("%s: %w", l.ConfigFile(), err)
	}
	return s, nil
}

// LoadFile returns what the user set, without defaults.
func LoadFile(l Layout) (Settings, error) {
	var s Settings
	b, err := os.ReadFile(l.ConfigFile())
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, errdefs.Wrap(errdefs.Denied, err, "cannot read the machine's settings")
	}
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields() // a misspelt setting must not be silently the default
	if err := d.Decode(&s); err != nil {
		return Settings{}, errdefs.Wrap(errdefs.Invalid, err, "the settings in %s are malformed: %v", l.ConfigFile(), err)
	}
	return s, nil
}

// Save validates what the user set, with defaults filled in for host h, and
// writes it durably. A running machine takes it over at its next start.
func Save(l Layout, s Settings, h Host) error {
	if err := s.WithDefaults(h).Validate(h); err != nil {
		return err
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(l.ConfigFile()), 0o700); err != nil {
		return errdefs.Wrap(errdefs.Denied, err, "cannot make the directory %s", filepath.Dir(l.ConfigFile()))
	}
	return durable.WriteFile(l.ConfigFile(), append(b, '\n'), 0o600)
}

// setting is one key that Set and Get know.
type setting struct {
	get func(*Settings) string
	set func(*Settings, string) error
}

var settings = map[string]setting{
	"cpus":          {func(s *Settings) string { return strconv.Itoa(s.CPUs) }, func(s *Settings, v string) error { return setInt(&s.CPUs, v) }},
	"memory":        {func(s *Settings) string { return size(s.Memory) }, func(s *Settings, v string) error { return setSize(&s.Memory, v) }},
	"disk_size":     {func(s *Settings) string { return size(s.DiskSize) }, func(s *Settings, v string) error { return setSize(&s.DiskSize, v) }},
	"driver":        {func(s *Settings) string { return s.Driver }, func(s *Settings, v string) error { s.Driver = v; return nil }},
	"image":         {func(s *Settings) string { return s.Image }, func(s *Settings, v string) error { s.Image = v; return nil }},
	"idle_minutes":  {func(s *Settings) string { return strconv.Itoa(s.IdleMinutes) }, func(s *Settings, v string) error { return setInt(&s.IdleMinutes, v) }},
	"dns":           {func(s *Settings) string { return strings.Join(s.DNS, ",") }, setDNS},
	"host_loopback": {func(s *Settings) string { return strconv.FormatBool(s.HostLoopback) }, func(s *Settings, v string) error { return setBool(&s.HostLoopback, v) }},
	"debug":         {func(s *Settings) string { return strconv.FormatBool(s.Debug) }, func(s *Settings, v string) error { return setBool(&s.Debug, v) }},
}

// Keys returns the names that Get and Set know, sorted.
func Keys() []string {
	keys := make([]string, 0, len(settings))
	for k := range settings {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// Get returns the named setting as text, in the form that Set takes.
func (s Settings) Get(key string) (string, error) {
	k, ok := settings[key]
	if !ok {
		return "", unknown(key)
	}
	return k.get(&s), nil
}

// Set changes the named setting to what the text says; "" is the default.
// Sizes take docker's units ("512m", "64g", "8 GiB"). It checks the form, not
// the limits: Save does.
func (s *Settings) Set(key, value string) error {
	k, ok := settings[key]
	if !ok {
		return unknown(key)
	}
	if err := k.set(s, strings.TrimSpace(value)); err != nil {
		return errdefs.Wrap(errdefs.Invalid, err, "invalid value %q for the setting %s", value, key)
	}
	return nil
}

func unknown(key string) error {
	return errdefs.New(errdefs.Invalid, "unknown setting %q: use one of %s", key, strings.Join(Keys(), ", "))
}

func setInt(p *int, v string) (err error) {
	n := 0
	if v != "" {
		n, err = strconv.Atoi(v)
	}
	if err == nil {
		*p = n
	}
	return err
}

func setBool(p *bool, v string) (err error) {
	b := false
	if v != "" {
		b, err = strconv.ParseBool(v)
	}
	if err == nil {
		*p = b
	}
	return err
}

func setSize(p *int64, v string) (err error) {
	n := int64(0)
	if v != "" {
		n, err = units.RAMInBytes(v)
	}
	if err == nil {
		*p = n
	}
	return err
}

func setDNS(s *Settings, v string) error {
	var list []string
	for _, d := range strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ' ' }) {
		if _, err := netip.ParseAddr(d); err != nil {
			return err
		}
		list = append(list, d)
	}
	s.DNS = list
	return nil
}
