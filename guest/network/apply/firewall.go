//go:build linux

package apply

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"dhow/guest/network/plan"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Firewall replaces the table of t's name by t, in one transaction: there is
// no moment without rules.
func (x *Executor) Firewall(t plan.Table) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: t.Name}
	c.AddTable(table) // so that there is one to delete
	c.DelTable(table)
	c.AddTable(table)
	for _, pc := range t.Chains {
		chain, err := chainOf(table, pc)
		if err != nil {
			return err
		}
		c.AddChain(chain)
		for _, r := range pc.Rules {
			exprs, err := exprsOf(r)
			if err != nil {
				return err
			}
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("set the firewall table %s: %w", t.Name, err)
	}
	return nil
}

func chainOf(table *nftables.Table, p plan.Chain) (*nftables.Chain, error) {
	policy := nftables.ChainPolicyAccept
	if p.Drop {
		policy = nftables.ChainPolicyDrop
	}
	c := &nftables.Chain{Table: table, Name: p.Name, Policy: &policy}
	switch p.Type {
	case "filter":
		c.Type = nftables.ChainTypeFilter
	case "nat":
		c.Type = nftables.ChainTypeNAT
	default:
		return nil, fmt.Errorf("chain %s: type %q", p.Name, p.Type)
	}
	switch p.Hook {
	case "forward":
		c.Hooknum = nftables.ChainHookForward
	case "postrouting":
		c.Hooknum = nftables.ChainHookPostrouting
	default:
		return nil, fmt.Errorf("chain %s: hook %q", p.Name, p.Hook)
	}
	switch p.Priority {
	case "filter":
		c.Priority = nftables.ChainPriorityFilter
	case "srcnat":
		c.Priority = nftables.ChainPriorityNATSource
	default:
		return nil, fmt.Errorf("chain %s: priority %q", p.Name, p.Priority)
	}
	return c, nil
}

// exprsOf translates a rule. Each condition loads a register and compares it.
func exprsOf(r plan.Rule) ([]expr.Any, error) {
	var e []expr.Any
	if r.Established {
		e = append(e,
			&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
				Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED),
				Xor:  binaryutil.NativeEndian.PutUint32(0)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)})
	}
	if r.Source.IsValid() {
		e = append(e,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: net.CIDRMask(r.Source.Bits(), 32), Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: r.Source.Masked().Addr().AsSlice()})
	}
	for _, c := range []struct {
		name string
		key  expr.MetaKey
		op   expr.CmpOp
	}{
		{r.In, expr.MetaKeyIIFNAME, expr.CmpOpEq},
		{r.Out, expr.MetaKeyOIFNAME, expr.CmpOpEq},
		{r.NotOut, expr.MetaKeyOIFNAME, expr.CmpOpNeq},
	} {
		if c.name == "" {
			continue
		}
		if len(c.name) >= unix.IFNAMSIZ {
			return nil, fmt.Errorf("interface name %q is too long", c.name)
		}
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, c.name)
		e = append(e, &expr.Meta{Key: c.key, Register: 1}, &expr.Cmp{Op: c.op, Register: 1, Data: name})
	}
	switch r.Verdict {
	case "accept":
		e = append(e, &expr.Verdict{Kind: expr.VerdictAccept})
	case "drop":
		e = append(e, &expr.Verdict{Kind: expr.VerdictDrop})
	case "masquerade":
		e = append(e, &expr.Masq{})
	default:
		return nil, fmt.Errorf("rule %v: verdict %q", r, r.Verdict)
	}
	return e, nil
}

// Forward lets the namespace forward IPv4 between its links.
func (x *Executor) Forward() error { return sysctl("net/ipv4/ip_forward", "1") }

// NoLinkLocal keeps links that are made from now on without IPv6: a bridge
// and its ports would have addresses, and traffic, that nobody uses.
func (x *Executor) NoLinkLocal() error {
	err := sysctl("net/ipv6/conf/default/disable_ipv6", "1")
	if os.IsNotExist(err) { // a kernel without IPv6
		return nil
	}
	return err
}

func sysctl(name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
}
