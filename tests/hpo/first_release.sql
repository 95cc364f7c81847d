BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE hpo_alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT hpo_alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "hpo_alembic_version" VALUES('0001');
CREATE TABLE hpo_attempts (
	id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	controller_id INTEGER NOT NULL, 
	devices INTEGER NOT NULL, 
	started_at DOUBLE NOT NULL, 
	ended_at DOUBLE, 
	first_step INTEGER, 
	last_step INTEGER, 
	reason VARCHAR(32), 
	detail TEXT, 
	PRIMARY KEY (id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id) ON DELETE CASCADE, 
	FOREIGN KEY(controller_id) REFERENCES hpo_controllers (id) ON DELETE CASCADE, 
	CONSTRAINT uq_hpo_attempts_trial_number UNIQUE (trial_id, number)
);
INSERT INTO "hpo_attempts" VALUES(1,1,1,1,1,1.79525049591498088831e+09,1.79525050960301756856e+09,0,160,NULL,NULL);
INSERT INTO "hpo_attempts" VALUES(2,2,1,1,1,1.79525050965298700331e+09,1.79525051288801288599e+09,0,160,NULL,NULL);
INSERT INTO "hpo_attempts" VALUES(3,3,1,1,1,1795250512.90998,1.79525051348201489451e+09,0,40,'pruned',NULL);
INSERT INTO "hpo_attempts" VALUES(4,4,1,1,1,1.79525051350301647181e+09,1.7952505142550139427e+09,0,40,'pruned',NULL);
INSERT INTO "hpo_attempts" VALUES(5,5,1,1,1,1.79525051427798724174e+09,1.79525051525798583036e+09,0,40,'pruned',NULL);
INSERT INTO "hpo_attempts" VALUES(6,6,1,1,1,1.7952505152809991836e+09,1.7952505177659988403e+09,0,40,'pruned',NULL);
INSERT INTO "hpo_attempts" VALUES(7,7,1,1,1,1.79525051779798412322e+09,1.79525051953698110583e+09,0,40,'pruned',NULL);
INSERT INTO "hpo_attempts" VALUES(8,8,1,1,1,1.7952505195640177727e+09,NULL,0,40,NULL,NULL);
CREATE TABLE hpo_controllers (
	id INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	pid INTEGER NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	started_at DOUBLE NOT NULL, 
	seen_at DOUBLE NOT NULL, 
	expires_at DOUBLE NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id) ON DELETE CASCADE
);
INSERT INTO "hpo_controllers" VALUES(1,1,'a-machine',6370,'active',1.79525049079901576043e+09,1.79525052258399724957e+09,1.79525053758399724961e+09);
CREATE TABLE hpo_metrics (
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	attempt_id INTEGER NOT NULL, 
	at DOUBLE NOT NULL, 
	metrics JSON NOT NULL, 
	PRIMARY KEY (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id) ON DELETE CASCADE, 
	FOREIGN KEY(attempt_id) REFERENCES hpo_attempts (id) ON DELETE CASCADE
);
INSERT INTO "hpo_metrics" VALUES(1,20,1,1.79525050703099370002e+09,'{"valid_ppl": 2539.1462110614993, "train_loss": 7.856390976905823, "lr": 0.00012839673388295817, "drop_probability": 0.2, "tokens_per_second": 17203.341422617013, "step_seconds": 0.00968896899939864, "train_seconds": 0.29761660099757137, "peak_memory_bytes": 513904640.0}');
INSERT INTO "hpo_metrics" VALUES(1,40,1,1.7952505073279948235e+09,'{"valid_ppl": 2355.1015548704186, "train_loss": 7.824234485626221, "lr": 0.00011606764437399647, "drop_probability": 0.2, "tokens_per_second": 28065.162948550304, "step_seconds": 0.00794902249617735, "train_seconds": 0.480049177975161, "peak_memory_bytes": 518959104.0}');
INSERT INTO "hpo_metrics" VALUES(1,60,1,1.79525050769101834294e+09,'{"valid_ppl": 2090.6363966526956, "train_loss": 7.732249355316162, "lr": 9.554365691414942e-05, "drop_probability": 0.2, "tokens_per_second": 21229.856976282277, "step_seconds": 0.010241313004371477, "train_seconds": 0.721218960970873, "peak_memory_bytes": 518959104.0}');
INSERT INTO "hpo_metrics" VALUES(1,80,1,1.7952505080259993077e+09,'{"valid_ppl": 1941.6233661092165, "train_loss": 7.628322315216065, "lr": 7.015138921946688e-05, "drop_probability": 0.2, "tokens_per_second": 22916.308671436767, "step_seconds": 0.011919371998374118, "train_seconds": 0.9446406329952879, "peak_memory_bytes": 518959104.0}');
INSERT INTO "hpo_metrics" VALUES(1,100,1,1.79525050830899930006e+09,'{"valid_ppl": 1860.623559138908, "train_loss": 7.592125773429871, "lr": 4.400653117375283e-05, "drop_probability": 0.2, "tokens_per_second": 26990.17754279084, "step_seconds": 0.009976112000003923, "train_seconds": 1.1343392739872797, "peak_memory_bytes": 518959104.0}');
INSERT INTO "hpo_metrics" VALUES(1,120,1,1.79525050857699203493e+09,'{"valid_ppl": 1820.079378648869, "train_loss": 7.5554712295532225, "lr": 2.134675579881347e-05, "drop_probability": 0.2, "tokens_per_second": 31464.113250893235, "step_seconds": 0.007641317501111189, "train_seconds": 1.2970643429944175, "peak_memory_bytes": 518959104.0}');
INSERT INTO "hpo_metrics" VALUES(1,140,1,1.7952505088710160255e+09,'{"valid_ppl": 1804.9862753315456, "train_loss": 7.535172247886658, "lr": 5.844858663806978e-06, "drop_probability": 0.2, "tokens_per_second": 28106.900400285955, "step_seconds": 0.008926220500143245, "train_seconds": 1.47922601600294, "peak_memory_bytes": 518959104.0}');
INSERT INTO "hpo_metrics" VALUES(1,160,1,1.7952505095989942551e+09,'{"valid_ppl": 1802.7198144153965, "train_loss": 7.532032299041748, "lr": 1.3455104451357995e-08, "drop_probability": 0.2, "tokens_per_second": 16356.643630453482, "step_seconds": 0.010729691999586066, "train_seconds": 1.7922486700190348, "peak_memory_bytes": 518959104.0}');
INSERT INTO "hpo_metrics" VALUES(2,20,2,1.7952505100310177803e+09,'{"valid_ppl": 388.700078907097, "train_loss": 7.065152931213379, "lr": 0.003745605318782483, "drop_probability": 0.1821875, "tokens_per_second": 19327.30010836629, "step_seconds": 0.012599145997228334, "train_seconds": 0.2649102549912641, "peak_memory_bytes": 516657152.0}');
INSERT INTO "hpo_metrics" VALUES(2,40,2,1.79525051040301322942e+09,'{"valid_ppl": 214.46504929230372, "train_loss": 5.693346762657166, "lr": 0.0033859396026544686, "drop_probability": 0.1634375, "tokens_per_second": 19093.715382459846, "step_seconds": 0.011713584499375429, "train_seconds": 0.5330613139885827, "peak_memory_bytes": 519753728.0}');
INSERT INTO "hpo_metrics" VALUES(2,60,2,1.79525051070001411433e+09,'{"valid_ppl": 205.54604958790728, "train_loss": 5.471516752243042, "lr": 0.0027872113152020454, "drop_probability": 0.14468750000000002, "tokens_per_second": 21891.76676268997, "step_seconds": 0.011644991998764453, "train_seconds": 0.7669391939925845, "peak_memory_bytes": 520441856.0}');
INSERT INTO "hpo_metrics" VALUES(2,80,2,1.79525051093199849126e+09,'{"valid_ppl": 199.6067771948404, "train_loss": 5.447142100334167, "lr": 0.0020464649577452434, "drop_probability": 0.1259375, "tokens_per_second": 30525.617995124245, "step_seconds": 0.007952011001179926, "train_seconds": 0.9346671659804997, "peak_memory_bytes": 521166848.0}');
INSERT INTO "hpo_metrics" VALUES(2,100,2,1.79525051117500662797e+09,'{"valid_ppl": 196.82482760409945, "train_loss": 5.501150512695313, "lr": 0.001283763941969348, "drop_probability": 0.1071875, "tokens_per_second": 32203.379642815413, "step_seconds": 0.0076309030009724665, "train_seconds": 1.09365668996179, "peak_memory_bytes": 520957952.0}');
INSERT INTO "hpo_metrics" VALUES(2,120,2,1.79525051169699144358e+09,'{"valid_ppl": 195.51411586684478, "train_loss": 5.382298374176026, "lr": 0.0006227301866702624, "drop_probability": 0.0884375, "tokens_per_second": 12741.960592013318, "step_seconds": 0.013484552502632141, "train_seconds": 1.4954786829766817, "peak_memory_bytes": 521023488.0}');
INSERT INTO "hpo_metrics" VALUES(2,140,2,1.79525051212599730493e+09,'{"valid_ppl": 194.4241542293647, "train_loss": 5.448197674751282, "lr": 0.00017050693609265587, "drop_probability": 0.0696875, "tokens_per_second": 14997.977395681142, "step_seconds": 0.012159300000348594, "train_seconds": 1.8368580480018863, "peak_memory_bytes": 521023488.0}');
INSERT INTO "hpo_metrics" VALUES(2,160,2,1.79525051288600111004e+09,'{"valid_ppl": 194.26901369205817, "train_loss": 5.425612497329712, "lr": 3.925139625726066e-07, "drop_probability": 0.0509375, "tokens_per_second": 20885.24169199384, "step_seconds": 0.011331134002830368, "train_seconds": 2.0820072339920443, "peak_memory_bytes": 521023488.0}');
INSERT INTO "hpo_metrics" VALUES(3,20,3,1.79525051321201038357e+09,'{"valid_ppl": 316.52645449213384, "train_loss": 6.9481048583984375, "lr": 0.004391109588029435, "drop_probability": 0.2, "tokens_per_second": 23329.880708187815, "step_seconds": 0.010889470497204456, "train_seconds": 0.21946104500239016, "peak_memory_bytes": 517345280.0}');
INSERT INTO "hpo_metrics" VALUES(3,40,3,1795250513.47602,'{"valid_ppl": 215.55206193386965, "train_loss": 5.619515609741211, "lr": 0.003969460364429827, "drop_probability": 0.2, "tokens_per_second": 24080.98597483359, "step_seconds": 0.010544144501182018, "train_seconds": 0.4320769239930087, "peak_memory_bytes": 517619712.0}');
INSERT INTO "hpo_metrics" VALUES(4,20,4,1.79525051400500535968e+09,'{"valid_ppl": 245.77571398309976, "train_loss": 6.505849671363831, "lr": 0.008056252777740193, "drop_probability": 0.1821875, "tokens_per_second": 32112.534360127793, "step_seconds": 0.0076224399999773595, "train_seconds": 0.1594393000123091, "peak_memory_bytes": 519856128.0}');
INSERT INTO "hpo_metrics" VALUES(4,40,4,1.79525051424901938438e+09,'{"valid_ppl": 216.75055467000533, "train_loss": 5.68859076499939, "lr": 0.007282664084322787, "drop_probability": 0.1634375, "tokens_per_second": 27438.378490923402, "step_seconds": 0.00969653450374608, "train_seconds": 0.3460392480265, "peak_memory_bytes": 522326016.0}');
INSERT INTO "hpo_metrics" VALUES(5,20,5,1.79525051490401482581e+09,'{"valid_ppl": 2016.345430728288, "train_loss": 7.803846383094788, "lr": 0.0004669106144100923, "drop_probability": 0.1821875, "tokens_per_second": 20662.068611113264, "step_seconds": 0.008682286497787572, "train_seconds": 0.24779706700064708, "peak_memory_bytes": 520826880.0}');
INSERT INTO "hpo_metrics" VALUES(5,40,5,1.79525051525199127195e+09,'{"valid_ppl": 1450.230701591335, "train_loss": 7.48945837020874, "lr": 0.00042207627490895033, "drop_probability": 0.1634375, "tokens_per_second": 17657.988618906755, "step_seconds": 0.00746029300353257, "train_seconds": 0.5377508160090656, "peak_memory_bytes": 520826880.0}');
INSERT INTO "hpo_metrics" VALUES(6,20,6,1.79525051733200407023e+09,'{"valid_ppl": 1460.4216676482317, "train_loss": 7.665524911880493, "lr": 0.0009982050955887939, "drop_probability": 0.1821875, "tokens_per_second": 8759.781345977894, "step_seconds": 0.026686483000958106, "train_seconds": 0.584489474997099, "peak_memory_bytes": 518373376.0}');
INSERT INTO "hpo_metrics" VALUES(6,40,6,1.79525051776000404363e+09,'{"valid_ppl": 784.8500775551187, "train_loss": 7.031185841560363, "lr": 0.0009023540595099909, "drop_probability": 0.1634375, "tokens_per_second": 15131.589697743313, "step_seconds": 0.011786342998675536, "train_seconds": 0.9228544519937714, "peak_memory_bytes": 518856704.0}');
INSERT INTO "hpo_metrics" VALUES(7,20,7,1.7952505189840168953e+09,'{"valid_ppl": 2553.8608982236497, "train_loss": 7.8579344034194945, "lr": 0.00010824204565719093, "drop_probability": 0.1821875, "tokens_per_second": 7788.310626367549, "step_seconds": 0.030910195997421397, "train_seconds": 0.657395453985373, "peak_memory_bytes": 518115328.0}');
INSERT INTO "hpo_metrics" VALUES(7,40,7,1.79525051952998042107e+09,'{"valid_ppl": 2424.3690859636536, "train_loss": 7.834288549423218, "lr": 9.784827761354949e-05, "drop_probability": 0.1634375, "tokens_per_second": 11046.829019474815, "step_seconds": 0.013596078999398742, "train_seconds": 1.1208768739452353, "peak_memory_bytes": 519286784.0}');
INSERT INTO "hpo_metrics" VALUES(8,20,8,1.79525052186901426312e+09,'{"valid_ppl": 955.1677940336847, "train_loss": 7.481703853607177, "lr": 0.0017719918782557146, "drop_probability": 0.1821875, "tokens_per_second": 7568.231404860719, "step_seconds": 0.02800473050228902, "train_seconds": 0.676512084013666, "peak_memory_bytes": 518393856.0}');
INSERT INTO "hpo_metrics" VALUES(8,40,8,1.79525052258399724957e+09,'{"valid_ppl": 383.6492526078006, "train_loss": 6.479323387145996, "lr": 0.001601839213032292, "drop_probability": 0.1634375, "tokens_per_second": 11180.727810932543, "step_seconds": 0.015106427501450526, "train_seconds": 1.1344429170130752, "peak_memory_bytes": 521510912.0}');
CREATE TABLE hpo_studies (
	study_id INTEGER NOT NULL, 
	uid VARCHAR(32) NOT NULL, 
	document TEXT NOT NULL, 
	document_sha256 VARCHAR(64) NOT NULL, 
	created_at DOUBLE NOT NULL, 
	budget_trials INTEGER NOT NULL, 
	reserved_trials INTEGER NOT NULL, 
	stop_requested_at DOUBLE, 
	PRIMARY KEY (study_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id) ON DELETE CASCADE, 
	UNIQUE (uid)
);
INSERT INTO "hpo_studies" VALUES(1,'08952e08bcdb4c2e86386a7de733b6bd','study: first
objectives:
- metric: valid_ppl
  direction: minimize
sampler:
  name: tpe
  seed: 5
  startup_trials: 3
pruner:
  name: asha
  min_steps: 40
  reduction_factor: 2
budget:
  trials: 8
  hours: null
resources:
  ranks: 1
  cpus_per_rank: 1
  gpus_per_rank: 0
  concurrent_trials: 1
failures:
  max_retries: 2
  max_failures: 3
  hang_seconds: 600.0
tracking:
  wandb: null
train:
  seed: 0
  output_dir: runs/train
  steps: 160
  eval_every: 20
  keep_checkpoints: 2
  precision: fp32
  loss_limit: null
  threads: null
  data:
    name: pydocs
    dir: null
    train: null
    valid: null
    test: null
    context: 32
    batch_size: 8
  model:
    layers: 2
    d_model: 32
    heads: 2
    d_ff: 64
    dropout: 0.1
  layerdrop:
    policy: linear
    p_init: 0.2
    p_final: 0.05
    decay_fraction: 1.0
    decay_steps: null
    start_layer: 1
  optim:
    lr: 0.0005
    weight_decay: 0.01
    betas:
    - 0.9
    - 0.999
    warmup_steps: 5
    schedule: cosine
    lr_final_fraction: 0.0
    grad_clip: 1.0
    accumulation: 1
  deepspeed:
    zero_stage: 2
space:
  layerdrop.policy:
    type: categorical
    choices:
    - static
    - linear
  optim.lr:
    type: float
    low: 0.0001
    high: 0.01
    log: true
    step: null
','d7e6ca27fe5d6855ed0e914fe1627804074f5dd54a49a958600fb8d12efb4188',1.79525049078698611254e+09,8,8,NULL);
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'first');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MINIMIZE',1,0);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_system_attributes" VALUES(1,1,'study:metric_names','["valid_ppl"]');
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_intermediate_values" VALUES(1,1,20,2.53914621106149934358e+03,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(2,1,40,2.35510155487041856754e+03,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(3,1,60,2.09063639665269556636e+03,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(4,1,80,1.94162336610921647667e+03,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(5,1,100,1.86062355913890792183e+03,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(6,1,120,1.82007937864886889653e+03,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(7,1,140,1.80498627533154558473e+03,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(8,1,160,1.8027198144153965131e+03,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(9,2,20,388.700078907097,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(10,2,40,2.14465049292303717716e+02,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(11,2,60,2.05546049587907276646e+02,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(12,2,80,1.99606777194840390166e+02,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(13,2,100,1.96824827604099453996e+02,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(14,2,120,1.95514115866844775844e+02,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(15,2,140,1.9442415422936468872e+02,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(16,2,160,1.94269013692058166494e+02,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(17,3,20,3.16526454492133836994e+02,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(18,3,40,2.15552061933869651974e+02,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(19,4,20,2.45775713983099763026e+02,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(20,4,40,2.16750554670005328721e+02,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(21,5,20,2.01634543072828796529e+03,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(22,5,40,1.45023070159133499147e+03,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(23,6,20,1.46042166764823173256e+03,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(24,6,40,7.84850077555118673432e+02,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(25,7,20,2.5538608982236496558e+03,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(26,7,40,2.42436908596365356064e+03,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(27,8,20,9.5516779403368468589e+02,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(28,8,40,3.8364925260780057669e+02,'FINITE');
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'layerdrop.policy',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["static", "linear"]}}');
INSERT INTO "trial_params" VALUES(2,1,'optim.lr',1.31016376305950830571e-04,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.01, "log": true}}');
INSERT INTO "trial_params" VALUES(3,2,'layerdrop.policy',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["static", "linear"]}}');
INSERT INTO "trial_params" VALUES(4,2,'optim.lr',3.82202584986712822281e-03,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.01, "log": true}}');
INSERT INTO "trial_params" VALUES(5,3,'layerdrop.policy',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["static", "linear"]}}');
INSERT INTO "trial_params" VALUES(6,3,'optim.lr',4.48070016103651463934e-03,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.01, "log": true}}');
INSERT INTO "trial_params" VALUES(7,4,'layerdrop.policy',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["static", "linear"]}}');
INSERT INTO "trial_params" VALUES(8,4,'optim.lr',8.220622235659261548e-03,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.01, "log": true}}');
INSERT INTO "trial_params" VALUES(9,5,'layerdrop.policy',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["static", "linear"]}}');
INSERT INTO "trial_params" VALUES(10,5,'optim.lr',4.76436860259688574684e-04,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.01, "log": true}}');
INSERT INTO "trial_params" VALUES(11,6,'layerdrop.policy',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["static", "linear"]}}');
INSERT INTO "trial_params" VALUES(12,6,'optim.lr',1.018571193200245098e-03,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.01, "log": true}}');
INSERT INTO "trial_params" VALUES(13,7,'layerdrop.policy',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["static", "linear"]}}');
INSERT INTO "trial_params" VALUES(14,7,'optim.lr',1.1045047764903244262e-04,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.01, "log": true}}');
INSERT INTO "trial_params" VALUES(15,8,'layerdrop.policy',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["static", "linear"]}}');
INSERT INTO "trial_params" VALUES(16,8,'optim.lr',1.80814532980463449178e-03,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.01, "log": true}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_system_attributes" VALUES(1,1,'completed_rung_0','2355.1015548704186');
INSERT INTO "trial_system_attributes" VALUES(2,1,'completed_rung_1','1941.6233661092165');
INSERT INTO "trial_system_attributes" VALUES(3,2,'completed_rung_0','214.46504929230372');
INSERT INTO "trial_system_attributes" VALUES(4,2,'completed_rung_1','199.6067771948404');
INSERT INTO "trial_system_attributes" VALUES(5,3,'completed_rung_0','215.55206193386965');
INSERT INTO "trial_system_attributes" VALUES(6,4,'tpe:relative_params:0','"{\"layerdrop.policy\": \"linear\", \"optim.lr\": 0.008220622235659262}"');
INSERT INTO "trial_system_attributes" VALUES(7,4,'completed_rung_0','216.75055467000533');
INSERT INTO "trial_system_attributes" VALUES(8,5,'tpe:relative_params:0','"{\"layerdrop.policy\": \"linear\", \"optim.lr\": 0.0004764368602596886}"');
INSERT INTO "trial_system_attributes" VALUES(9,5,'completed_rung_0','1450.230701591335');
INSERT INTO "trial_system_attributes" VALUES(10,6,'tpe:relative_params:0','"{\"layerdrop.policy\": \"linear\", \"optim.lr\": 0.001018571193200245}"');
INSERT INTO "trial_system_attributes" VALUES(11,6,'completed_rung_0','784.8500775551187');
INSERT INTO "trial_system_attributes" VALUES(12,7,'tpe:relative_params:0','"{\"layerdrop.policy\": \"linear\", \"optim.lr\": 0.00011045047764903244}"');
INSERT INTO "trial_system_attributes" VALUES(13,7,'completed_rung_0','2424.3690859636536');
INSERT INTO "trial_system_attributes" VALUES(14,8,'tpe:relative_params:0','"{\"layerdrop.policy\": \"linear\", \"optim.lr\": 0.0018081453298046345}"');
INSERT INTO "trial_system_attributes" VALUES(15,8,'completed_rung_0','383.6492526078006');
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'run_dir','"runs/first/trial-0000"');
INSERT INTO "trial_user_attributes" VALUES(2,1,'attempts','1');
INSERT INTO "trial_user_attributes" VALUES(3,1,'device_seconds','13.688');
INSERT INTO "trial_user_attributes" VALUES(4,2,'run_dir','"runs/first/trial-0001"');
INSERT INTO "trial_user_attributes" VALUES(5,2,'attempts','1');
INSERT INTO "trial_user_attributes" VALUES(6,2,'device_seconds','3.235');
INSERT INTO "trial_user_attributes" VALUES(7,3,'run_dir','"runs/first/trial-0002"');
INSERT INTO "trial_user_attributes" VALUES(8,3,'attempts','1');
INSERT INTO "trial_user_attributes" VALUES(9,3,'device_seconds','0.572');
INSERT INTO "trial_user_attributes" VALUES(10,3,'reason','"pruned"');
INSERT INTO "trial_user_attributes" VALUES(11,4,'run_dir','"runs/first/trial-0003"');
INSERT INTO "trial_user_attributes" VALUES(12,4,'attempts','1');
INSERT INTO "trial_user_attributes" VALUES(13,4,'device_seconds','0.752');
INSERT INTO "trial_user_attributes" VALUES(14,4,'reason','"pruned"');
INSERT INTO "trial_user_attributes" VALUES(15,5,'run_dir','"runs/first/trial-0004"');
INSERT INTO "trial_user_attributes" VALUES(16,5,'attempts','1');
INSERT INTO "trial_user_attributes" VALUES(17,5,'device_seconds','0.98');
INSERT INTO "trial_user_attributes" VALUES(18,5,'reason','"pruned"');
INSERT INTO "trial_user_attributes" VALUES(19,6,'run_dir','"runs/first/trial-0005"');
INSERT INTO "trial_user_attributes" VALUES(20,6,'attempts','1');
INSERT INTO "trial_user_attributes" VALUES(21,6,'device_seconds','2.485');
INSERT INTO "trial_user_attributes" VALUES(22,6,'reason','"pruned"');
INSERT INTO "trial_user_attributes" VALUES(23,7,'run_dir','"runs/first/trial-0006"');
INSERT INTO "trial_user_attributes" VALUES(24,7,'attempts','1');
INSERT INTO "trial_user_attributes" VALUES(25,7,'device_seconds','1.739');
INSERT INTO "trial_user_attributes" VALUES(26,7,'reason','"pruned"');
INSERT INTO "trial_user_attributes" VALUES(27,8,'run_dir','"runs/first/trial-0007"');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,1.8027198144153965131e+03,'FINITE');
INSERT INTO "trial_values" VALUES(2,2,0,1.94269013692058166494e+02,'FINITE');
INSERT INTO "trial_values" VALUES(3,3,0,2.15552061933869651974e+02,'FINITE');
INSERT INTO "trial_values" VALUES(4,4,0,2.16750554670005328721e+02,'FINITE');
INSERT INTO "trial_values" VALUES(5,5,0,1.45023070159133499147e+03,'FINITE');
INSERT INTO "trial_values" VALUES(6,6,0,7.84850077555118673432e+02,'FINITE');
INSERT INTO "trial_values" VALUES(7,7,0,2.42436908596365356064e+03,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-21 08:41:35.888812','2026-11-21 08:41:49.613955');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-21 08:41:49.628821','2026-11-21 08:41:52.893721');
INSERT INTO "trials" VALUES(3,2,1,'PRUNED','2026-11-21 08:41:52.903183','2026-11-21 08:41:53.485587');
INSERT INTO "trials" VALUES(4,3,1,'PRUNED','2026-11-21 08:41:53.492136','2026-11-21 08:41:54.258732');
INSERT INTO "trials" VALUES(5,4,1,'PRUNED','2026-11-21 08:41:54.266799','2026-11-21 08:41:55.261785');
INSERT INTO "trials" VALUES(6,5,1,'PRUNED','2026-11-21 08:41:55.269883','2026-11-21 08:41:57.771197');
INSERT INTO "trials" VALUES(7,6,1,'PRUNED','2026-11-21 08:41:57.784906','2026-11-21 08:41:59.540881');
INSERT INTO "trials" VALUES(8,7,1,'RUNNING','2026-11-21 08:41:59.554649',NULL);
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
CREATE INDEX ix_hpo_controllers_study_id ON hpo_controllers (study_id);
CREATE INDEX ix_hpo_attempts_controller ON hpo_attempts (controller_id);
COMMIT;
