-- Which identities have the pods of a namespace?
-- arg namespace string "": the namespace; empty for all
-- times since_time
SELECT identity, namespace, state, time_ms AS since_time FROM identities WHERE $namespace = '' OR namespace = $namespace ORDER BY namespace, identity
