//go:build linux

package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"dhow/internal/errdefs"
)

// The three files of every container that are bound over the image's. They are
// made before the process (a bind needs its source) and filled, in place, when
// the network is there.
func (b *box) hostnamePath() string { return filepath.Join(b.dir, "hostname") }
func (b *box) hostsPath() string    { return filepath.Join(b.dir, "hosts") }
func (b *box) resolvPath() string   { return filepath.Join(b.dir, "resolv.conf") }

func (l *launch) writeFiles(context.Context) error {
	name := l.rec.Config.Hostname
	if l.rec.HostConfig.NetworkMode.IsHost() || l.rec.HostConfig.UTSMode.IsHost() {
		if n, err := os.Hostname(); err == nil {
			name = n
		}
	}
	full := name
	if d := l.rec.Config.Domainname; d != "" {
		full += "." + d
	}
	return errors.Join(
		os.WriteFile(l.b.hostnamePath(), []byte(full+"\n"), 0o644),
		touch(l.b.hostsPath()),
		touch(l.b.resolvPath()),
	)
}

func touch(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

const hostsHead = "127.0.0.1\tlocalhost\n" +
	"::1\tlocalhost ip6-localhost ip6-loopback\n" +
	"fe00::\tip6-localnet\n" +
	"ff00::\tip6-mcastprefix\n" +
	"ff02::1\tip6-allnodes\n" +
	"ff02::2\tip6-allrouters\n"

// fillHosts writes /etc/hosts: the loopback names, what --add-host asked for,
// and the container's own name at its address.
func (l *launch) fillHosts() error {
	h := l.rec.HostConfig
	var text strings.Builder
	if h.NetworkMode.IsHost() {
		own, err := os.ReadFile("/etc/hosts")
		if err != nil {
			own = []byte(hostsHead)
		}
		text.Write(own)
	} else {
		text.WriteString(hostsHead)
	}
	for _, x := range h.ExtraHosts {
		name, addr, _ := strings.Cut(x, ":")
		if addr == hostGateway {
			gw := l.hostGateway()
			if gw == "" {
				return errdefs.New(errdefs.Invalid, "unable to derive the IP value for host-gateway")
			}
			addr = gw
		}
		fmt.Fprintf(&text, "%s\t%s\n", strings.Trim(addr, "[]"), name)
	}
	if ep := l.endpoint; ep != nil && ep.IPAddress != "" {
		name := l.rec.Config.Hostname
		if d := l.rec.Config.Domainname; d != "" {
			name = name + "." + d + " " + name
		}
		fmt.Fprintf(&text, "%s\t%s\n", ep.IPAddress, name)
	}
	return os.WriteFile(l.b.hostsPath(), []byte(text.String()), 0o644)
}

// hostGateway is the address in --add-host that the engine replaces.
const hostGateway = "host-gateway"

// checkGateway refuses the host's address where containers may not reach it.
// A create asks it, and a start: the machine may have been set up anew between.
func (e *Engine) checkGateway(h *container.HostConfig) error {
	if !e.o.NoHostGateway {
		return nil
	}
	for _, x := range h.ExtraHosts {
		if _, addr, _ := strings.Cut(x, ":"); addr == hostGateway {
			return errdefs.New(errdefs.Invalid, "--add-host %s needs the host, which this machine's containers may not reach: "+
				"\"dhow machine config host_loopback=true\" allows it from the machine's next start", x)
		}
	}
	return nil
}

func (l *launch) hostGateway() string {
	if g := l.e.o.HostGateway; g.IsValid() {
		return g.String()
	}
	if l.endpoint != nil {
		return l.endpoint.Gateway
	}
	return ""
}

// fillResolv writes /etc/resolv.conf: the network's servers (the machine's own
// without one) under what --dns, --dns-search and --dns-opt asked for.
func (l *launch) fillResolv() error {
	h := l.rec.HostConfig
	var servers, search, options []string
	if l.endpoint != nil && len(l.endpoint.DNS) > 0 {
		servers = l.endpoint.DNS
	} else if own, err := os.ReadFile("/etc/resolv.conf"); err == nil {
		servers, search, options = parseResolv(string(own), !h.NetworkMode.IsHost())
	}
	if len(h.DNS) > 0 {
		servers = nil
		for _, a := range h.DNS {
			servers = append(servers, a.String())
		}
	}
	if len(h.DNSSearch) > 0 {
		search = h.DNSSearch
		if len(search) == 1 && search[0] == "." {
			search = nil
		}
	}
	if len(h.DNSOptions) > 0 {
		options = h.DNSOptions
	}
	var text strings.Builder
	for _, s := range servers {
		text.WriteString("nameserver " + s + "\n")
	}
	if len(search) > 0 {
		text.WriteString("search " + strings.Join(search, " ") + "\n")
	}
	if len(options) > 0 {
		text.WriteString("options " + strings.Join(options, " ") + "\n")
	}
	return os.WriteFile(l.b.resolvPath(), []byte(text.String()), 0o644)
}

// parseResolv reads a resolv.conf. Loopback servers are dropped where the
// reader is in another network namespace.
func parseResolv(text string, dropLoopback bool) (servers, search, options []string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil && !(dropLoopback && a.IsLoopback()) {
				servers = append(servers, f[1])
			}
		case "search", "domain":
			search = f[1:]
		case "options":
			options = f[1:]
		}
	}
	return servers, search, options
}

// endpointSettings is what inspect and ps show of a container's network.
func (b *box) endpointSettings() map[string]*network.EndpointSettings {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(map[string]*network.EndpointSettings, len(b.rec.Networks))
	for name, asked := range b.rec.Networks {
		s := asked.Copy()
		if ep := b.endpoint; ep != nil {
			s.NetworkID, s.EndpointID, s.IPPrefixLen = ep.NetworkID, ep.EndpointID, ep.IPPrefixLen
			s.Gateway, _ = netip.ParseAddr(ep.Gateway)
			s.IPAddress, _ = netip.ParseAddr(ep.IPAddress)
			_ = s.MacAddress.UnmarshalText([]byte(ep.MacAddress))
		}
		out[name] = s
	}
	return out
}
