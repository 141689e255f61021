"""What is looked at while a pretraining goes on.

The values of a look, as they stand in `metrics.jsonl` (``"kind": "val"``) and under ``val/`` in TensorBoard.  All but
the last two are of the looked-at images: of the validation split of `watch.shards`, or training images of the run.

=========================  =============================================================================================
``feature_std``            how far images lie apart: the standard deviation of the features, each of length 1, mean over
                           dimensions, times sqrt(D); 1 is isotropic, 0 one point (Chen & He 2021, SimSiam, section 4.1)
``rankme``                 effective rank of the features, 1 to D: exp of the entropy of their singular values (Garrido
                           et al. 2023); at most the number of images, so compare looks at as many images only
``embedding_std``          as ``feature_std``, of the embedding that the method compares
``agreement``              mean cosine of embedding and target of the same image, -1 to 1; high in a good run and in a
                           collapse
``prototype_entropy``      entropy of the mean distribution over the P prototypes, by log P; 1 where all are used, 0
                           where all images have one
``prototype_information``  entropy of the mean less mean entropy, by log P: how much prototypes tell of the image
                           (Gomes, Krause & Perona 2010); 0 where all images have the same distribution
``knn_auroc``              of 20 weighted nearest neighbours (Caron et al. 2021, DINO), mean over findings
``probe_auroc``            of a logistic regression on the features, mean over findings
=========================  =============================================================================================

The last two are learnt from the training split of `watch.shards` and told of its validation split; no test split is
read.  A value that a method has not (no prototypes, no labels) is not there; null is one that is not defined.
"""
