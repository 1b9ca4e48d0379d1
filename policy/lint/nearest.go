package lint

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// labelled is a pod or a namespace.
type labelled struct {
	name   string // for a message
	labels map[string]string
}

// shortfall is one requirement that a thing does not meet.
type shortfall struct {
	want     string // app=webb
	has      string // app=web; empty if it lacks the label
	distance int    // letters between them
	mend     string // app: web, if that is what the selector should say
}

// absent is the distance of a label that is not there: farther than any that is.
const absent = 1000

// nearest says which things come closest to a selector, which labels they
// fail by, and what one can do. It says nothing if there are no things.
func nearest(s *metav1.LabelSelector, things []labelled) (why, fix string) {
	type candidate struct {
		name     string
		short    []shortfall
		distance int
		text     string
	}
	var best []candidate
	wants := requirements(s)
	for _, t := range things {
		c := candidate{name: t.name}
		var texts []string
		for _, r := range wants {
			if f, ok := r.shortfall(t.labels); ok {
				c.short = append(c.short, f)
				c.distance += f.distance
				texts = append(texts, f.String())
			}
		}
		c.text = strings.Join(texts, ", ")
		best = append(best, c)
	}
	if len(best) == 0 {
		return "", "check the namespace, or remove the selector"
	}
	slices.SortFunc(best, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(len(a.short), len(b.short)), cmp.Compare(a.distance, b.distance), cmp.Compare(a.text, b.text), cmp.Compare(a.name, b.name))
	})
	first := best[0]
	alike := 0
	for _, c := range best {
		if c.text == first.text {
			alike++
		}
	}
	why = "the closest is " + first.name
	if alike > 1 {
		why = fmt.Sprintf("the closest are %s and %d more", first.name, alike-1)
	}
	fix = "label the pods so, or correct the selector"
	if len(first.short) == 1 && first.short[0].mend != "" {
		fix = "write " + first.short[0].mend
	}
	return why + ", which " + first.text, fix
}

func (f shortfall) String() string {
	switch {
	case f.has == "":
		return "lacks " + f.want
	case f.distance < absent && f.distance <= 3:
		letters := "letters"
		if f.distance == 1 {
			letters = "letter"
		}
		return fmt.Sprintf("has %s, not %s (%d %s off)", f.has, f.want, f.distance, letters)
	}
	return fmt.Sprintf("has %s, not %s", f.has, f.want)
}

// requirement is one thing that a selector asks.
type requirement struct {
	key    string
	op     metav1.LabelSelectorOperator
	values []string
}

func requirements(s *metav1.LabelSelector) []requirement {
	var out []requirement
	for _, k := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		out = append(out, requirement{k, metav1.LabelSelectorOpIn, []string{s.MatchLabels[k]}})
	}
	for _, e := range s.MatchExpressions {
		out = append(out, requirement{e.Key, e.Operator, e.Values})
	}
	return out
}

func (r requirement) String() string {
	switch r.op {
	case metav1.LabelSelectorOpIn:
		if len(r.values) == 1 {
			return r.key + "=" + r.values[0]
		}
		return r.key + " in (" + strings.Join(r.values, ",") + ")"
	case metav1.LabelSelectorOpNotIn:
		return r.key + " not in (" + strings.Join(r.values, ",") + ")"
	case metav1.LabelSelectorOpExists:
		return "a label " + r.key
	}
	return "no label " + r.key
}

// shortfall reports what labels lack to meet the requirement, if they do.
func (r requirement) shortfall(labels map[string]string) (shortfall, bool) {
	value, has := labels[r.key]
	switch r.op {
	case metav1.LabelSelectorOpIn, metav1.LabelSelectorOpExists:
		if has && (r.op == metav1.LabelSelectorOpExists || slices.Contains(r.values, value)) {
			return shortfall{}, false
		}
		if has {
			f := shortfall{want: r.String(), has: r.key + "=" + value, distance: absent, mend: r.key + ": " + value}
			for _, v := range r.values {
				f.distance = min(f.distance, distance(v, value))
			}
			return f, true
		}
		return r.similarKey(labels), true
	}
	// NotIn and DoesNotExist fail by what is there.
	if !has || r.op == metav1.LabelSelectorOpNotIn && !slices.Contains(r.values, value) {
		return shortfall{}, false
	}
	return shortfall{want: r.String(), has: r.key + "=" + value, distance: absent}, true
}

// similarKey looks for a label that was likely meant: nearly the same key with
// the right value, or the right value under a key that ends alike, such as
// app and app.kubernetes.io/name.
func (r requirement) similarKey(labels map[string]string) shortfall {
	f := shortfall{want: r.String(), distance: absent}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		d := distance(k, r.key)
		right := r.op == metav1.LabelSelectorOpExists || slices.Contains(r.values, labels[k])
		if right && d < f.distance && (d <= 2 || slices.Contains(r.values, labels[k])) {
			f.has, f.distance, f.mend = k+"="+labels[k], d, k+": "+labels[k]
		}
	}
	return f
}

// distance counts the letters to change, insert or remove (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
