#!/bin/sh
# The controller's container: joins Ray, then starts the study $HPO_STUDY, or resumes it.
#
# A study's own file is studies/$HPO_STUDY.yaml; without one, it is a study that ships. Ends with
# status 0 where the same once more would not help: the input is wrong, or somebody stopped it.

# Ray wants a driver to be on a node of its own: this one takes no trials.
ray start --address "$HPO_RAY" --num-cpus 0 --num-gpus 0 --disable-usage-stats || exit 1

# Without its database no controller knows what to do.
connect='import os, psycopg; psycopg.connect(os.environ["HPO_STORAGE"], connect_timeout=5).close()'
until python -c "$connect"; do sleep 5; done

set -- "$HPO_STUDY" --runs "$HPO_RUNS" --ray-address "$HPO_RAY" --metrics-port 9109
if hpo status "$HPO_STUDY" > /dev/null 2>&1; then
    hpo resume "$@" &
else
    file=studies/$HPO_STUDY.yaml
    if [ -f "$file" ]; then shift; set -- "$file" --name "$HPO_STUDY" "$@"; fi
    hpo start "$@" &
fi

# A shell that waits hears SIGTERM, and then waits anew: the trials write their checkpoints.
trap 'kill -TERM $!' TERM
while :; do
    wait $!
    status=$?
    kill -0 $! 2> /dev/null || break
done
case $status in 2 | 130) exit 0 ;; esac
exit $status
