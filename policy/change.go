package policy

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
)

// change makes the next snapshot of an engine. What the snapshot shares with
// earlier ones is copied before it is written to, once a change.
type change struct {
	engine *Engine
	next   *Snapshot
	copied map[any]bool // scopes, namespaces and lists that are the change's own
	// policies says that policies changed, tableStale that there are new blocks.
	policies, tableStale bool
}

// begin starts from the present snapshot. The engine must be locked.
func (e *Engine) begin() *change {
	next := *e.snapshot.Load()
	next.policies, next.own, next.inventory = maps.Clone(next.policies), maps.Clone(next.own), maps.Clone(next.inventory)
	next.scopes = slices.Clone(next.scopes)
	return &change{engine: e, next: &next, copied: make(map[any]bool)}
}

// finish makes the next snapshot whole.
func (c *change) finish() {
	if !c.policies {
		return
	}
	c.next.revision++
	for n := range c.copied {
		if n, is := n.(*namespacePolicies); is {
			n.changed = c.next.revision
		}
	}
	if c.engine.renumberAt < c.numbers() {
		c.renumber()
	}
	if c.tableStale {
		c.next.table = newBlockTable(c.engine.blocks, c.next.table.version+1)
	}
	if c.engine.renumberAt == unlimited {
		c.engine.renumberAt = 2*c.numbers() + 4096
	}
}

func (c *change) numbers() int { return len(c.next.groups) + len(c.engine.blocks) }

// unlimited is Engine.renumberAt until it is known how many numbers are in use.
const unlimited = int(^uint(0) >> 1)

// renumber compiles all policies anew, so that groups and blocks which none
// refers to any longer give their numbers back. A number is never given to
// another in between: what was found out about a class stays true.
func (c *change) renumber() {
	e := c.engine
	e.groupNumbers, e.scopeNumbers, e.blockNumbers = make(map[string]uint32), make(map[string]int), make(map[string]uint32)
	e.blocks, e.renumberAt = nil, unlimited
	c.next.engine = &identity{}
	c.next.groups, c.next.own, c.next.scopes, c.tableStale = nil, make(map[string]*scope), nil, true
	for name, n := range c.next.policies {
		fresh := &namespacePolicies{changed: c.next.revision}
		for _, p := range n.list {
			fresh.list = append(fresh.list, compile(p.object, c))
		}
		c.next.policies[name] = fresh
		if len(fresh.list) == 0 {
			delete(c.next.policies, name)
		}
	}
}

func (c *change) setPolicy(p *networkingv1.NetworkPolicy) []Problem {
	list := c.policiesOf(p.Namespace)
	at, found := find(list, p.Name)
	if found && reflect.DeepEqual(list[at].object.Spec, p.Spec) {
		return list[at].problems // told again: nothing to forget
	}
	made := compile(p, c)
	n := c.ownPolicies(p.Namespace)
	if found {
		n.list[at] = made
	} else {
		n.list = slices.Insert(n.list, at, made)
	}
	c.policies = true
	return made.problems
}

func (c *change) deletePolicy(namespace, name string) {
	at, found := find(c.policiesOf(namespace), name)
	if !found {
		return
	}
	n := c.ownPolicies(namespace)
	n.list = slices.Delete(n.list, at, at+1)
	c.policies = true
}

func find(list []*compiled, name string) (at int, found bool) {
	return slices.BinarySearchFunc(list, name, func(p *compiled, name string) int { return strings.Compare(p.object.Name, name) })
}

func (c *change) policiesOf(namespace string) []*compiled {
	if n := c.next.policies[namespace]; n != nil {
		return n.list
	}
	return nil
}

// ownPolicies is a namespace's policies, to be changed. One without policies
// stays, so that its classes are told.
func (c *change) ownPolicies(namespace string) *namespacePolicies {
	n := c.next.policies[namespace]
	if n != nil && c.copied[n] {
		return n
	}
	fresh := &namespacePolicies{}
	if n != nil {
		fresh.list = slices.Clone(n.list)
	}
	c.next.policies[namespace], c.copied[fresh] = fresh, true
	return fresh
}

// group implements interner.
func (c *change) group(g *group) uint32 {
	scopeKey := g.scopeKey(nil)
	key := g.pods.appendKey(slices.Clone(scopeKey))
	if number, known := c.engine.groupNumbers[string(key)]; known {
		return number
	}
	number := uint32(len(c.next.groups))
	c.engine.groupNumbers[string(key)] = number
	c.next.groups = append(c.next.groups, g)
	s := c.scope(g, string(scopeKey))
	s.groups = append(s.groups, number)
	return number
}

// scope finds or makes the scope of a group, to be changed.
func (c *change) scope(g *group, key string) *scope {
	if g.namespaces == nil {
		s := c.ownScope(c.next.own[g.namespace], g)
		c.next.own[g.namespace] = s
		return s
	}
	at, known := c.engine.scopeNumbers[key]
	if !known {
		at = len(c.next.scopes)
		c.engine.scopeNumbers[key] = at
		c.next.scopes = append(c.next.scopes, nil)
	}
	s := c.ownScope(c.next.scopes[at], g)
	c.next.scopes[at] = s
	return s
}

func (c *change) ownScope(s *scope, g *group) *scope {
	if s != nil && c.copied[s] {
		return s
	}
	fresh := &scope{any: g}
	if s != nil {
		fresh.groups = slices.Clone(s.groups)
	}
	c.copied[fresh] = true
	return fresh
}

// block implements interner.
func (c *change) block(b *block) uint32 {
	key := b.appendKey(nil)
	if number, known := c.engine.blockNumbers[string(key)]; known {
		return number
	}
	number := uint32(len(c.engine.blocks))
	c.engine.blockNumbers[string(key)] = number
	c.engine.blocks = append(c.engine.blocks, b)
	c.tableStale = true
	return number
}
