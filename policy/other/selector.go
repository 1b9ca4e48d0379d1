package other

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// truth is a truth value of three. In this order "and" is the smaller and "or"
// the greater.
type truth uint8

const (
	no truth = iota
	maybe
	yes
)

func (t truth) not() truth { return yes - t }

func is(b bool) truth {
	if b {
		return yes
	}
	return no
}

// expression says whether it holds for a pod.
type expression func(*Pod) truth

func all(parts ...expression) expression {
	return func(p *Pod) truth {
		out := yes
		for _, e := range parts {
			if out = min(out, e(p)); out == no {
				break
			}
		}
		return out
	}
}

func anyOf(parts ...expression) expression {
	return func(p *Pod) truth {
		out := no
		for _, e := range parts {
			if out = max(out, e(p)); out == yes {
				break
			}
		}
		return out
	}
}

func not(e expression) expression { return func(p *Pod) truth { return e(p).not() } }

// view is a set of labels that a selector may ask for: those of a pod or of
// its namespace, under the names that the policy's kind gives them.
type view func(p *Pod, key string) (value string, has truth)

// metadataName is the label that every namespace has.
const metadataName = "kubernetes.io/metadata.name"

func podLabels(p *Pod, key string) (string, truth) {
	value, has := p.Labels[key]
	return value, is(has)
}

func namespaceLabels(p *Pod, key string) (string, truth) {
	if key == metadataName {
		return p.Namespace, yes
	}
	if p.NamespaceLabels == nil {
		return "", maybe
	}
	value, has := p.NamespaceLabels[key]
	return value, is(has)
}

// has, and the others, are what a selector may say of a label.
func has(v view, key string) expression {
	return func(p *Pod) truth {
		_, has := v(p, key)
		return has
	}
}

// holds is no for a label that is not there.
func holds(v view, key string, test func(value string) bool) expression {
	return func(p *Pod) truth {
		value, has := v(p, key)
		if has != yes {
			return has
		}
		return is(test(value))
	}
}

func in(v view, key string, values []string) expression {
	return holds(v, key, func(value string) bool { return slices.Contains(values, value) })
}

// labelSelector compiles a selector of Kubernetes.
func labelSelector(s *metav1.LabelSelector, v view) (expression, error) {
	var parts []expression
	for key, value := range s.MatchLabels {
		parts = append(parts, in(v, key, []string{value}))
	}
	for _, r := range s.MatchExpressions {
		listed := r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpNotIn
		if listed == (len(r.Values) == 0) {
			return nil, fmt.Errorf("matchExpressions: %s %s with %d values", r.Key, r.Operator, len(r.Values))
		}
		switch r.Operator {
		case metav1.LabelSelectorOpIn:
			parts = append(parts, in(v, r.Key, r.Values))
		case metav1.LabelSelectorOpNotIn:
			parts = append(parts, not(in(v, r.Key, r.Values)))
		case metav1.LabelSelectorOpExists:
			parts = append(parts, has(v, r.Key))
		case metav1.LabelSelectorOpDoesNotExist:
			parts = append(parts, not(has(v, r.Key)))
		default:
			return nil, fmt.Errorf("matchExpressions: operator %q is not known", r.Operator)
		}
	}
	return all(parts...), nil
}
