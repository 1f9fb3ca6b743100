package usernet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

const (
	// lookupTimeout bounds one question's way to the host's resolver: a stub
	// resolver has asked again, or given up, by then.
	lookupTimeout = 15 * time.Second
	// dnsIdle is how long a guest's DNS connection over TCP may be silent.
	dnsIdle = 10 * time.Second
	// maxQuestions is how many questions are answered at once; more wait.
	maxQuestions = 128
	// maxDNSStreams is how many connections may ask at once; more are refused.
	maxDNSStreams = 64
	dnsPort       = 53
)

// hostNames are HostAddress's names in the guest, docker's own.
var hostNames = []string{"host.docker.internal.", "gateway.docker.internal."}

// resolver is what the server asks; *net.Resolver is one.
type resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupCNAME(ctx context.Context, host string) (string, error)
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)
	LookupNS(ctx context.Context, name string) ([]*net.NS, error)
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupAddr(ctx context.Context, addr string) ([]string, error)
}

// nameServer answers the guest's DNS questions on the gateway, by the host's
// resolver: what a VPN, /etc/hosts or a company's split DNS say on the host, they
// say in the guest. Nothing in it wakes up while nobody asks.
type nameServer struct {
	udp      *gonet.UDPConn
	streams  atomic.Int64 // connections (Network.forwardDNS)
	resolver resolver
	local    map[string]netip.Addr // lower-case names with their final dot
	busy     chan struct{}
}

// openDNS listens on the gateway's port 53. Connections to it come from forwardTCP.
func (n *Network) openDNS() (*nameServer, error) {
	at := tcpip.FullAddress{NIC: nic, Addr: address(gatewayAddress), Port: dnsPort}
	udp, err := gonet.DialUDP(n.stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		return nil, err
	}
	s := &nameServer{udp: udp, resolver: hostResolver(n.config.DNS), local: map[string]netip.Addr{}, busy: make(chan struct{}, maxQuestions)}
	if n.config.resolver != nil {
		s.resolver = n.config.resolver
	}
	if n.config.HostLoopback {
		for _, name := range hostNames {
			s.local[name] = netip.MustParseAddr(HostAddress)
		}
	}
	return s, nil
}

// hostResolver returns the host's resolver, or one that asks the given servers
// in turn.
func hostResolver(servers []string) *net.Resolver {
	if len(servers) == 0 {
		return &net.Resolver{}
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		var errs []error
		for _, s := range servers {
			c, err := d.DialContext(ctx, network, net.JoinHostPort(s, "53"))
			if err == nil {
				return c, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}}
}

// close ends serve.
func (s *nameServer) close() { _ = s.udp.Close() }

// serve answers datagrams until close, and waits for the answers under way,
// which ctx's end cuts short.
func (s *nameServer) serve(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		buf := make([]byte, 4096)
		size, from, err := s.udp.ReadFrom(buf)
		if err != nil {
			return
		}
		s.busy <- struct{}{}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { <-s.busy }()
			if m := s.reply(ctx, buf[:size], false); m != nil {
				_, _ = s.udp.WriteTo(m, from) // a guest that is gone asks no more
			}
		}()
	}
}

// conversation answers one TCP connection's questions, one after the other.
func (s *nameServer) conversation(ctx context.Context, c net.Conn) {
	d := dns.Conn{Conn: c}
	for {
		_ = c.SetDeadline(time.Now().Add(dnsIdle))
		q, err := d.ReadMsgHeader(nil)
		if err != nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(lookupTimeout + dnsIdle))
		s.busy <- struct{}{}
		m := s.reply(ctx, q, true)
		<-s.busy
		if m == nil {
			return
		}
		if _, err := d.Write(m); err != nil {
			return
		}
	}
}

// reply returns the answer to a packed question, packed; nil for none.
func (s *nameServer) reply(ctx context.Context, question []byte, stream bool) []byte {
	var q dns.Msg
	if q.Unpack(question) != nil || q.Response {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	m := s.answer(ctx, &q)
	size := dns.MinMsgSize
	if stream {
		size = dns.MaxMsgSize
	} else if o := q.IsEdns0(); o != nil {
		size = max(size, int(o.UDPSize()))
		m.SetEdns0(o.UDPSize(), false)
	}
	m.Truncate(size)
	m.Compress = true
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

func (s *nameServer) answer(ctx context.Context, q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	if q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 || q.Question[0].Qclass != dns.ClassINET {
		m.Rcode = dns.RcodeNotImplemented
		return m
	}
	records, err := s.lookup(ctx, q.Question[0])
	var derr *net.DNSError
	switch {
	case err == nil:
		m.Answer = records
	case errors.As(err, &derr) && derr.IsNotFound:
		// The host's resolver does not tell "no such name" from "no such
		// record": only for addresses is the first the likelier.
		if q.Question[0].Qtype == dns.TypeA {
			m.Rcode = dns.RcodeNameError
		}
	default:
		m.Rcode = dns.RcodeServerFailure // the guest may ask again
	}
	return m
}

func (s *nameServer) lookup(ctx context.Context, q dns.Question) (out []dns.RR, err error) {
	head := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET} // TTL 0: caching is the host's
	if ip, ok := s.local[strings.ToLower(q.Name)]; ok {
		if q.Qtype == dns.TypeA {
			out = append(out, &dns.A{Hdr: head, A: ip.AsSlice()})
		}
		return out, nil
	}
	// Without the dot the host's hosts file and search list count, as they do
	// for its own programs.
	name := strings.TrimSuffix(q.Name, ".")
	switch q.Qtype {
	case dns.TypeA:
		ips, err := s.resolver.LookupNetIP(ctx, "ip4", name)
		if err != nil {
			return nil, err
		}
		for _, ip := range ips {
			out = append(out, &dns.A{Hdr: head, A: ip.Unmap().AsSlice()})
		}
	case dns.TypeCNAME:
		cname, err := s.resolver.LookupCNAME(ctx, name)
		if err != nil {
			return nil, err
		}
		if !strings.EqualFold(dns.Fqdn(cname), q.Name) {
			out = append(out, &dns.CNAME{Hdr: head, Target: dns.Fqdn(cname)})
		}
	case dns.TypeMX:
		list, err := s.resolver.LookupMX(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			out = append(out, &dns.MX{Hdr: head, Mx: dns.Fqdn(r.Host), Preference: r.Pref})
		}
	case dns.TypeNS:
		list, err := s.resolver.LookupNS(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			out = append(out, &dns.NS{Hdr: head, Ns: dns.Fqdn(r.Host)})
		}
	case dns.TypeSRV:
		_, list, err := s.resolver.LookupSRV(ctx, "", "", name)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			out = append(out, &dns.SRV{Hdr: head, Target: dns.Fqdn(r.Target), Port: r.Port, Priority: r.Priority, Weight: r.Weight})
		}
	case dns.TypeTXT:
		list, err := s.resolver.LookupTXT(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, t := range list {
			out = append(out, &dns.TXT{Hdr: head, Txt: chunks(t)})
		}
	case dns.TypePTR:
		ip, ok := reverse(name)
		if !ok {
			return nil, nil
		}
		list, err := s.resolver.LookupAddr(ctx, ip.String())
		if err != nil {
			return nil, err
		}
		for _, h := range list {
			out = append(out, &dns.PTR{Hdr: head, Ptr: dns.Fqdn(h)})
		}
	}
	// Everything else, AAAA first of all, has no answer: the network is IPv4.
	return out, nil
}

// chunks cuts a TXT record's text into the strings of at most 255 bytes that
// the format has.
func chunks(s string) (out []string) {
	for len(s) > 255 {
		out, s = append(out, s[:255]), s[255:]
	}
	return append(out, s)
}

// reverse returns the address of a name in in-addr.arpa.
func reverse(name string) (netip.Addr, bool) {
	p := strings.Split(strings.TrimSuffix(strings.ToLower(name), ".in-addr.arpa"), ".")
	if len(p) != 4 || !strings.HasSuffix(strings.ToLower(name), ".in-addr.arpa") {
		return netip.Addr{}, false
	}
	ip, err := netip.ParseAddr(strings.Join([]string{p[3], p[2], p[1], p[0]}, "."))
	return ip, err == nil
}
