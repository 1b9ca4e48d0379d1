package policy

import (
	"slices"

	"github.com/flowaudit/flowaudit/flow"
)

// compiledClass is what some revisions of the policies mean to a class. It is
// never changed. What every decision reads comes first, one cache line for
// each direction: the whole is as large as three.
type compiledClass struct {
	engine *identity
	// It is true of the revisions from since to revision.
	since, revision uint32
	// id stays as long as the same policies select the class.
	id      uint64
	sides   [2]selection
	members members
	groups  int // how many groups members has been asked about
	// before is what was found out for other revisions: late questions come
	// about the past while others ask about the present.
	before *compiledClass
	_      [24]byte
}

// remembersBefore is how many compiledClass.before a class keeps.
const remembersBefore = 3

func (k *compiledClass) holds(s *Snapshot) bool {
	return k.revision >= s.revision && k.since <= s.revision && k.engine == s.engine
}

// cut is the same, with no more than that many before.
func (k *compiledClass) cut(keep int) *compiledClass {
	if k == nil {
		return nil
	}
	out := *k
	out.before = nil
	if keep > 0 {
		out.before = k.before.cut(keep - 1)
	}
	return &out
}

// selection is the policies that select a class for one direction, sorted by name.
type selection struct {
	by         []flow.PolicyRef
	isolated   bool // one of them selects for certain
	usesBlocks bool
	policies   *[]selected // the same policies; nil if there are none
}

// selected lists the policies.
func (s *selection) selected() []selected {
	if s.policies == nil {
		return nil
	}
	return *s.policies
}

type selected struct {
	policy  *compiled
	rules   []*rule
	selects answer // yes or maybe
}

// class returns what this revision means to a class.
func (s *Snapshot) class(c *Class) *compiledClass {
	if known := c.compiled[s.slot].Load(); known != nil && known.holds(s) {
		return known
	}
	return s.findClass(c)
}

// findClass brings what was found out before up to date by what has changed
// since, or finds it out.
func (s *Snapshot) findClass(c *Class) *compiledClass {
	slot := &c.compiled[s.slot]
	latest := slot.Load()
	for k := latest; k != nil; k = k.before {
		if k.holds(s) {
			return k
		}
	}
	if latest != nil && latest.engine == s.engine && latest.revision < s.revision {
		fresh := s.updateClass(c, latest)
		slot.CompareAndSwap(latest, fresh)
		return fresh
	}
	fresh := s.compileClass(c)
	if latest == nil || latest.engine != s.engine {
		fresh.before = latest.cut(remembersBefore - 1)
		slot.CompareAndSwap(latest, fresh)
		return fresh
	}
	// The past stands behind the present.
	fresh.before = latest.before.cut(remembersBefore - 2)
	front := *latest
	front.before = fresh
	slot.CompareAndSwap(latest, &front)
	return fresh
}

func (s *Snapshot) compileClass(c *Class) *compiledClass {
	out := &compiledClass{engine: s.engine, revision: s.revision, id: s.shared.nextID(), groups: len(s.groups)}
	out.members.yes = make([]uint64, (len(s.groups)+63)/64)
	if own := s.own[c.namespace]; own != nil {
		s.join(&out.members, own, c)
	}
	for _, scope := range s.scopes {
		s.join(&out.members, scope, c)
	}
	if ns := s.policies[c.namespace]; ns != nil {
		out.since, out.sides = ns.changed, ns.selections(c)
	}
	return out
}

// join makes the class a member of those groups of a scope that it is in.
func (s *Snapshot) join(m *members, scope *scope, c *Class) {
	in := scope.any.matchNamespace(c)
	if in.is == no {
		return
	}
	for _, g := range scope.groups {
		if a := in.and(s.groups[g].pods.match(c.labels)); a.is != no {
			m.join(g, a)
		}
	}
}

// updateClass brings a class from an earlier revision to this one.
func (s *Snapshot) updateClass(c *Class, from *compiledClass) *compiledClass {
	out := *from
	out.revision = s.revision
	out.groups = len(s.groups)
	shared := true // members are still those of from
	for g := from.groups; g < len(s.groups); g++ {
		a := s.groups[g].match(c)
		if a.is == no {
			continue
		}
		if shared {
			out.members = members{slices.Clone(from.members.yes), slices.Clip(from.members.maybe)}
			shared = false
		}
		out.members.join(uint32(g), a)
	}
	if ns := s.policies[c.namespace]; ns != nil && ns.changed > from.revision {
		// Even if the same policies select the class: others may have in between.
		out.since, out.before = ns.changed, from.cut(remembersBefore-1)
		sides := ns.selections(c)
		if !sides[egress].equal(&from.sides[egress]) || !sides[ingress].equal(&from.sides[ingress]) {
			out.sides, out.id = sides, s.shared.nextID()
		}
	}
	return &out
}

func (s *selection) equal(t *selection) bool {
	return slices.EqualFunc(s.selected(), t.selected(), func(a, b selected) bool { return a.policy == b.policy })
}

// namespacePolicies is one namespace's policies.
type namespacePolicies struct {
	list    []*compiled // sorted by name
	changed uint32      // the revision that last changed them
}

// selections are the policies of the namespace that select a class.
func (n *namespacePolicies) selections(c *Class) (sides [2]selection) {
	for _, p := range n.list {
		pods := p.pods.match(c.labels).and(p.valid())
		if pods.is == no {
			continue
		}
		for d := range sides {
			selects := pods.and(answer{is: p.isolates[d]})
			if selects.is != no {
				sides[d].add(selected{p, p.rules[d], selects}, p.refs[d])
			}
		}
	}
	return sides
}

func (s *selection) add(p selected, ref flow.PolicyRef) {
	if s.policies == nil {
		s.policies = new([]selected)
	}
	*s.policies = append(*s.policies, p)
	s.by = append(s.by, ref)
	s.isolated = s.isolated || p.selects.is == yes
	for _, r := range p.rules {
		s.usesBlocks = s.usesBlocks || len(r.blocks) > 0 && !r.everyAddress
	}
}
