package kube

import (
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// remembered are the objects that an earlier run told of last, and that were
// not gone then: what of them is not there any more was removed in between.
type remembered map[flow.ChangeKind]map[podKey]struct{}

// Remember takes in the changes that an earlier run told, in their order. As
// soon as a kind of object is known whole, Changed is told that those of them
// are gone which are not there. It is called before anything else is told.
func (x *Index) Remember(changes []flow.Change) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range changes {
		c := &changes[i]
		k := podKey{c.Namespace, c.Name}
		if c.Deleted {
			delete(x.remembered[c.Kind], k)
			continue
		}
		if x.remembered[c.Kind] == nil {
			x.remembered[c.Kind] = make(map[podKey]struct{})
		}
		x.remembered[c.Kind][k] = struct{}{}
	}
}

// compare tells what is gone of a kind that is known whole now.
func (x *Index) compare(kind flow.ChangeKind, m moment) {
	for k := range x.remembered[kind] {
		if !x.has(kind, k) {
			x.tell(flow.Change{Time: time.Unix(0, m.now), Kind: kind, Namespace: k.namespace, Name: k.name, Deleted: true})
		}
	}
	delete(x.remembered, kind)
}

func (x *Index) has(kind flow.ChangeKind, k podKey) bool {
	switch kind {
	case flow.ChangePolicy:
		return x.byName[k] != nil
	case flow.ChangeNamespace:
		n := x.namespaces[k.name]
		return n != nil && n.known
	case flow.ChangeIdentity:
		return x.identities.has(k.name)
	}
	return true
}
